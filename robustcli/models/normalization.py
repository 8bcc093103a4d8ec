"""Which normalization a network was trained with, found out on clean images instead of guessed."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustcli.data import Data
from robustcli.data.datasets.channel_statistics import channel_statistics
from robustcli.errors import RobustCliError
from robustcli.evaluation.chance import is_at_chance
from robustcli.statistics import mcnemar

# Clean images on which normalizations are compared.
_IMAGES = 400
_BATCH = 100
# Probability of such a difference by chance, below which one normalization is clearly better than another.
_LEVEL = 0.05
_RULE = f"clearly best means McNemar's exact p below {_LEVEL} against each of the others"
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation, one number for each channel."""


@dataclass(frozen=True)
class Found:
    """The normalization that was taken.

    Args:
        statistics: mean and standard deviation.
        note: what each candidate gives and why this one was taken.
    """

    statistics: Statistics
    note: str


def candidates(data: Data, x: Tensor) -> dict[str, Statistics]:
    """The plausible normalizations for the images, by name; the data set's is that of `x` without train images."""
    channels = data.shape.channels
    known = {
        "none": ((0.0,) * channels, (1.0,) * channels),
        "the data set's": (data.mean, data.std) if data.mean else channel_statistics(x.cpu()),
        "0.5/0.5": ((0.5,) * channels, (0.5,) * channels),
    }
    if channels == 3:
        known["ImageNet's"] = _IMAGENET
    # Without names that mean the same as an earlier one.
    return {name: value for name, value in known.items() if value not in [*known.values()][: [*known].index(name)]}


def find_normalization(
    build: Callable[[Statistics], nn.Module], data: Data, name: str, usual: str | None = None
) -> Found:
    """Try the plausible normalizations on clean test images and take the best, if it is clearly best.

    Args:
        build: the network behind a normalization, in eval mode on the data's device.
        data: labelled images.
        name: name of the network, for messages.
        usual: reason to take none unless another is clearly better; None asks the user where no one is clearly best.

    Raises:
        RobustCliError: no normalization is clearly best, and none is usual.
    """
    x, y = data.evaluation("test", min(_IMAGES, data.sizes["test"]))
    known = candidates(data, x)
    right = {title: _correct(build(statistics), x, y) for title, statistics in known.items()}
    counts = {title: int(found.sum()) for title, found in right.items()}
    said = ", ".join(f"{title} {100 * count / len(x):.1f} %" for title, count in counts.items())
    tried = f"clean accuracy on {len(x)} images by normalisation: {said}"
    best = max(counts, key=lambda title: counts[title])
    rivals = [title for title in known if title != best and not _is_better(right[best], right[title])]
    equal = all(torch.equal(right[best], found) for found in right.values())
    is_guess = is_at_chance(counts[best], len(x), data.shape.classes)
    if not is_guess and (not rivals or equal):
        # Where all give the same, the first is as good as any.
        chosen = next(iter(known)) if equal else best
        why = "all give the same" if equal else f"clearly best; {_RULE}"
        return Found(known[chosen], f"{tried}; took {chosen} ({why})")
    if usual is not None:
        return Found(known["none"], f"{tried}; took none ({usual}; no other is clearly best)")
    options = "\n".join(f"  {title}: {_options(statistics)}" for title, statistics in known.items())
    raise RobustCliError(
        f"{name}: nothing says which normalisation it was trained with. {tried}; no one is clearly best ({_RULE}, and "
        f"better than guessing). Say which one:\n{options}"
    )


def _correct(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        predictions = [network(part).argmax(1) for part in torch.split(x, _BATCH)]
    return (torch.cat(predictions) == y).cpu()


def _is_better(one: Tensor, other: Tensor) -> bool:
    """Whether the first is right on clearly more images than the second."""
    only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    return only_one > only_other and mcnemar(only_one, only_other) < _LEVEL


def _options(statistics: Statistics) -> str:
    """Mean and std as they are written on a command line."""
    return " ".join(
        f"--{option} {','.join(f'{value:.4g}' for value in (values[:1] if len(set(values)) == 1 else values))}"
        for option, values in zip(("mean", "std"), statistics, strict=True)
    )
