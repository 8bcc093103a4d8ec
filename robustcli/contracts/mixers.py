"""Contract of every mixer."""

import torch
from torch import Tensor, nn

from robustcli.contracts.networks import images, labels
from robustcli.data.mixers import Mixer
from robustcli.data.targets import Labels
from robustcli.threat.noise import StreamNoise

_COUNT = 9
_CLASSES = 10


def _noise(batch: int) -> StreamNoise:
    return StreamNoise.on(torch.device("cpu")).reseed(0, "mix", batch)


def _mixed(mixer: Mixer, batch: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Mix oblong color images, so that axes cannot be confused."""
    x = images(_COUNT, 3, 8, seed=batch, dtype=dtype)[..., :6]
    return _mix(mixer, x, labels(_COUNT, seed=batch), batch)


def _mix(mixer: Mixer, x: Tensor, y: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    found, both = mixer(x, Labels.of(y), _CLASSES, _noise(batch))
    assert both.loss is both.attack
    return found, both.loss


def stays_in_the_box(mixer: Mixer) -> None:
    for batch in range(10):
        for dtype in (torch.float32, torch.float64):
            x, _ = _mixed(mixer, batch, dtype)
            assert x.shape == (_COUNT, 3, 8, 6)
            assert x.dtype == dtype
            assert 0 <= float(x.min()) <= float(x.max()) <= 1


def shares_sum_to_one(mixer: Mixer) -> None:
    """Labels stay labels, or become shares that are nonnegative and sum to 1."""
    for batch in range(10):
        x, y = _mixed(mixer, batch)
        if y.dim() == 1:
            assert torch.equal(y, labels(_COUNT, seed=batch))
            continue
        assert y.shape == (_COUNT, _CLASSES)
        assert y.dtype == x.dtype
        assert float(y.min()) >= 0
        assert torch.allclose(y.sum(1), torch.ones(_COUNT), atol=1e-6)


def does_not_modify_its_input(mixer: Mixer) -> None:
    x, y = images(_COUNT), labels(_COUNT)
    given_x, given_y = x.clone(), y.clone()
    state = torch.get_rng_state()
    _mix(mixer, x, y, 0)
    assert torch.equal(x, given_x)
    assert torch.equal(y, given_y)
    assert torch.equal(torch.get_rng_state(), state), "moved the global generator"


def treats_class_shares_as_labels(mixer: Mixer) -> None:
    x, y = images(_COUNT), labels(_COUNT)
    shares = nn.functional.one_hot(y, _CLASSES).float()
    by_label, by_share = (_mix(mixer, x, targets, 3) for targets in (y, shares))
    assert torch.equal(by_label[0], by_share[0])
    found = by_label[1] if by_label[1].dim() == 2 else nn.functional.one_hot(by_label[1], _CLASSES).float()
    assert torch.equal(found, by_share[1])


def mixes_labels_for_attack_and_loss_alike(mixer: Mixer) -> None:
    """Smoothed labels are mixed like the original ones: with the same partners and shares."""
    x, y = images(_COUNT), labels(_COUNT)
    smoothed = 0.7 * nn.functional.one_hot(y, _CLASSES) + 0.03
    found, both = mixer(x, Labels(y, smoothed), _CLASSES, _noise(4))
    assert torch.equal(found, _mix(mixer, x, y, 4)[0])
    assert torch.equal(both.attack, _mix(mixer, x, y, 4)[1])
    assert torch.equal(both.loss, _mix(mixer, x, smoothed, 4)[1])


def accepts_a_single_image(mixer: Mixer) -> None:
    """A batch may have one image, which is its own partner: pixels stay, or are cut out."""
    x, y = images(1, side=40).clamp_min(0.01), labels(1)
    found, targets = _mix(mixer, x, y, 0)
    is_kept = found != 0
    assert is_kept.any()
    assert torch.allclose(found[is_kept], x[is_kept], atol=1e-6)
    assert torch.allclose(
        targets if targets.dim() == 2 else nn.functional.one_hot(targets, _CLASSES).float(),
        nn.functional.one_hot(y, _CLASSES).float(),
        atol=1e-6,
    )


def repeats_itself(mixer: Mixer) -> None:
    assert torch.equal(observed(mixer), observed(mixer))


def observed(mixer: Mixer) -> Tensor:
    """Mixed images and labels of some batches, as one row of numbers."""
    return torch.cat([value.flatten().double() for batch in range(5) for value in _mixed(mixer, batch)])
