"""Determine the normalization of a network by trying plausible ones on clean images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.data.datasets.channel_statistics import channel_statistics
from robustcli.data.splits import Data
from robustcli.errors import RobustCliError
from robustcli.statistics import is_at_chance, mcnemar

# Number of clean images for comparing normalizations.
_IMAGES = 400
_BATCH = 100
# Significance level at which one normalization is clearly better than another.
_LEVEL = 0.05
# Difference in accuracy that hardly matters for an evaluation.
_SAME = 0.02
_TEMPERATURES = [2 ** (step / 4) for step in range(-16, 33)]
_RULE = f"clearly best means McNemar's exact p below {_LEVEL} against each of the others"
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation, one number for each channel."""


@dataclass(frozen=True)
class Found:
    """The chosen normalization.

    Args:
        statistics: mean and standard deviation.
        note: accuracies of the candidates, and the reason for the choice.
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
    # Drop candidates that equal an earlier one.
    return {name: value for name, value in known.items() if value not in [*known.values()][: [*known].index(name)]}


def find_normalization(
    build: Callable[[Statistics], nn.Module], data: Data, name: str, usual: str | None = None
) -> Found:
    """Try the plausible normalizations on clean test images and take the best one.

    If several have the best accuracy within noise, the one with the lowest loss is chosen if its loss is clearly lower,
    or if the choice hardly changes the accuracy.

    Args:
        build: builds the network with a normalization, in eval mode on the data's device.
        data: labeled images.
        name: name of the network, for messages.
        usual: reason to use none unless another is clearly better; None raises if none is clearly best.

    Raises:
        RobustCliError: no normalization is clearly best, and there is no usual one.
    """
    x, y = data.evaluation("test", min(_IMAGES, data.sizes.test))
    known = candidates(data, x)
    trials = {title: _trial(build(statistics), x, y) for title, statistics in known.items()}
    said = ", ".join(
        f"{title} {100 * one.correct / len(x):.1f} % (loss {one.mean:.3g})" for title, one in trials.items()
    )
    tried = f"clean accuracy on {len(x)} images by normalization: {said}"
    best = max(trials, key=lambda title: trials[title].correct)
    close = [title for title in known if not trials[best].is_clearly_better(trials[title])]
    chosen, why = _choose({title: trials[title] for title in close}, known, usual)
    if chosen is not None and not is_at_chance(trials[chosen].correct, len(x), data.shape.classes):
        return Found(known[chosen], f"{tried}; took {chosen} ({why})")
    if usual is not None:
        return Found(known["none"], f"{tried}; took none ({usual}; no other is clearly best)")
    options = "\n".join(f"  {title}: {_options(statistics)}" for title, statistics in known.items())
    raise RobustCliError(
        f"{name}: nothing says which normalization it was trained with. {tried}; none is clearly best ({_RULE}, and "
        f"better than guessing). Choose one:\n{options}"
    )


@dataclass(frozen=True)
class _Trial:
    """A network with one normalization on clean images.

    Args:
        right: mask (n,) of the correctly classified images.
        loss: cross-entropy of every image, (n,), at the temperature with the smallest mean, so that a normalization
            does not win by making the network less confident.
    """

    right: Tensor
    loss: Tensor

    @property
    def correct(self) -> int:
        return int(self.right.sum())

    @property
    def mean(self) -> float:
        return float(self.loss.mean())

    def is_clearly_better(self, other: "_Trial") -> bool:
        """Whether it classifies clearly more images correctly than the other."""
        only_one, only_other = int((self.right & ~other.right).sum()), int((other.right & ~self.right).sum())
        return only_one > only_other and mcnemar(only_one, only_other) < _LEVEL

    def has_clearly_lower_loss(self, other: "_Trial") -> bool:
        """Whether its loss is clearly lower than the other's on the same images."""
        from scipy.stats import wilcoxon

        difference = (other.loss - self.loss).nan_to_num(0.0).numpy()
        return bool(difference.any()) and float(wilcoxon(difference, alternative="greater").pvalue) < _LEVEL


def _choose(close: Mapping[str, _Trial], known: Mapping[str, Statistics], usual: str | None) -> tuple[str | None, str]:
    """Choose among candidates whose accuracy is the best within noise, with a reason; None if none stands out."""
    leader = min(close, key=lambda title: close[title].mean)
    others = [trial for title, trial in close.items() if title != leader]
    if len(close) == len(known) and all(torch.equal(trial.right, close[leader].right) for trial in others):
        # If all are equal, choose the first.
        return next(iter(known)), "all give the same"
    if not others:
        return leader, f"clearly best; {_RULE}"
    if usual is not None:
        return None, ""
    if all(close[leader].has_clearly_lower_loss(trial) for trial in others):
        return leader, (
            f"the accuracy of {len(close)} is equal within noise, and the loss of this one is clearly the lowest: "
            f"Wilcoxon's p below {_LEVEL} against each of them"
        )
    counts = [trial.correct for trial in close.values()]
    if max(counts) - min(counts) <= _SAME * len(close[leader].right):
        return (
            leader,
            f"the accuracy of {len(close)} differs by at most {_SAME:.0%}, so this hardly matters; lowest loss",
        )
    return None, ""


def _trial(network: nn.Module, x: Tensor, y: Tensor) -> _Trial:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        logits = torch.cat([network(part) for part in torch.split(x, _BATCH)]).cpu().double()
    labels = y.cpu()
    losses = torch.stack([F.cross_entropy(logits / heat, labels, reduction="none") for heat in _TEMPERATURES])
    means = losses.mean(1).nan_to_num(torch.inf)
    return _Trial(logits.argmax(1) == labels, losses[int(means.argmin())])


def _options(statistics: Statistics) -> str:
    """Mean and std as they are written on a command line."""
    return " ".join(
        f"--{option} {','.join(f'{value:.4g}' for value in (values[:1] if len(set(values)) == 1 else values))}"
        for option, values in zip(("mean", "std"), statistics, strict=True)
    )
