"""Contract of every preprocessor."""

import torch
from torch import Tensor

from robustcli.contracts.networks import drawn_from, images
from robustcli.preprocessors import Preprocessor

_COUNT = 6


def _pixels(channels: int = 3) -> Tensor:
    """Oblong images, so that axes cannot be confused."""
    return images(_COUNT, channels, 16)[..., :12]


def _drawn(preprocess: Preprocessor, x: Tensor, seed: int = 0) -> Tensor:
    with drawn_from(seed):
        return preprocess(x)


def stays_in_the_box(preprocess: Preprocessor) -> None:
    for channels in (1, 3):
        for dtype in (torch.float32, torch.float64):
            x = _pixels(channels).to(dtype)
            given = x.clone()
            found = _drawn(preprocess, x)
            assert found.dtype == dtype
            assert 0 <= float(found.min()) <= float(found.max()) <= 1
            assert torch.equal(x, given), "writes into its input"


def has_the_size_that_it_states(preprocess: Preprocessor) -> None:
    x = _pixels()
    assert _drawn(preprocess, x).shape == (_COUNT, 3, *preprocess.size(16, 12))


def gives_a_gradient(preprocess: Preprocessor) -> None:
    """Attacks need one that is neither zero nor undefined."""
    x = _pixels().requires_grad_()
    (grad,) = torch.autograd.grad(_drawn(preprocess, x).sum(), x)
    assert torch.isfinite(grad).all()
    assert (grad.flatten(1).abs().sum(1) > 0).all(), "the gradient of an image is zero; see `straight_through`"


def transforms_each_image_alone(preprocess: Preprocessor) -> None:
    if preprocess.votes > 1:
        return
    x = _pixels()
    alone = torch.cat([_drawn(preprocess, image[None]) for image in x])
    assert torch.equal(alone, _drawn(preprocess, x))


def states_its_randomness(preprocess: Preprocessor) -> None:
    """Equal seeds give equal images; other seeds do too, unless it sets `votes`."""
    x = _pixels()
    assert torch.equal(_drawn(preprocess, x), _drawn(preprocess, x))
    differs = not torch.equal(_drawn(preprocess, x), _drawn(preprocess, x, seed=1))
    assert differs <= (preprocess.votes > 1), "a random transformation sets votes to more than 1"


def observed(preprocess: Preprocessor) -> Tensor:
    """Transformed images, and how many votes there are, as one row of numbers."""
    return torch.cat([_drawn(preprocess, _pixels()).flatten(), torch.tensor([float(preprocess.votes)])])
