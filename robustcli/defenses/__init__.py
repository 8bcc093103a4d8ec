"""Published training methods: a loss with a matching attack. One per file.

Most are a `MinMax` (min_max.py) with the paper's parts; a spec may replace any part.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from robustcli.data.targets import Labels
from robustcli.errors import RobustCliError
from robustcli.optimization.averaging import Averaging
from robustcli.optimization.progress import Progress
from robustcli.optimization.stateless import Stateful, Stateless
from robustcli.registry.registry import Registry
from robustcli.threat.noise import Noise
from robustcli.threat.threat import ThreatModel

DEFENSES = Registry("defenses")

Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """A batch and its adversarial images, the input of a loss.

    Args:
        x: (n, c, h, w) in [0, 1].
        x_adv: the same shape, or several such blocks concatenated, from an attack that makes several versions.
        y: labels (n,), or class shares (n, k) if labels are mixed or smoothed.
    """

    x: Tensor
    y: Tensor
    x_adv: Tensor


def refuse_shares(batch: Batch, defense: str) -> None:
    """Raise for a batch with class shares, on behalf of a loss that is defined only for labels.

    Raises:
        RobustCliError: the batch has class shares.
    """
    if batch.y.dim() > 1:
        raise RobustCliError(
            f"defense.soft_labels: '{defense}' is published for whole labels, but these are mixed or smoothed; turn "
            f"that off, or choose a rule for soft labels (robust show {defense})"
        )


class RunningLoss(Stateful, Protocol):
    """The loss that the weights minimize, with its state, such as a second network."""

    @property
    def metrics(self) -> Metrics:
        """Metrics of the last evaluation besides its value; the same names every time."""
        ...

    def begin(self, batch: Batch, progress: Progress) -> None:
        """Begin an update. Its loss may be evaluated more than once; what happens once per update happens here."""
        ...

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean loss of the batch, a scalar, differentiable in the weights."""
        ...


class OuterLoss(Protocol):
    """Settings of the loss that the weights minimize, given the adversarial images."""

    def start(self, model: nn.Module, optimizer: Optimizer, rng: Noise) -> RunningLoss:
        """Bind it to a model; trained weights of the loss itself join the optimizer."""
        ...


class StatelessLoss(Stateless):
    """Base of a loss without state; it defines `__call__` like a `RunningLoss`."""

    @property
    def metrics(self) -> Metrics:
        return {}

    def begin(self, batch: Batch, progress: Progress) -> None:
        pass

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        raise NotImplementedError


class Step(Stateful, Protocol):
    """One update of the weights; its state is what a method keeps between updates, besides weights and optimizer."""

    def __call__(self, x: Tensor, labels: Labels, threat: ThreatModel, progress: Progress) -> Metrics:
        """Update the weights on one batch; metrics are scalar tensors on the device, "loss" among them.

        With several processes, x is a slice of the batch. A step passes its loss through `ranks.weighed` before
        differentiating it, gradients that it uses itself through `ranks.mean`, and metrics through `ranks.metrics`. The
        optimizer averages gradients over processes.

        Args:
            x: images (n, c, h, w) in [0, 1].
            labels: labels of the images.
            threat: the threat model of this update.
            progress: progress of the training at this update.
        """
        ...


@DEFENSES.protocol
class Defense(Protocol):
    """Settings of a training method; members inherit from it.

    Args:
        averaging: rule for the weights that are evaluated: the last ones or an average.
    """

    averaging: Averaging

    @property
    def is_adversarial(self) -> bool:
        """Whether it trains on adversarial examples, so that a loss of robustness is a failure (see collapse.py)."""
        return True

    @property
    def is_single_step(self) -> bool:
        """Whether its attack is one gradient step, which may overfit catastrophically; checks then record more."""
        return False

    @property
    def needs_labels(self) -> bool:
        """False if its attack does not need the labels of training images."""
        return True

    @property
    def replays(self) -> int:
        """Updates on each batch before the next one; 1 except in free training."""
        return 1

    @abstractmethod
    def start(self, model: nn.Module, optimizer: Optimizer, rng: Noise) -> Step:
        """Bind the method to a model, its optimizer and the source of noise."""
        ...
