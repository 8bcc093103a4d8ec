"""Published training methods: a loss, with the attack that suits it. One per file.

Most are a `MinMax` (min_max.py), the formula itself, with the paper's parts; a spec may replace any part.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.optim import Optimizer

from robustcli.data.targets import Labels
from robustcli.errors import RobustCliError
from robustcli.optimization.averaging import Averaging
from robustcli.optimization.progress import Progress
from robustcli.registry.registry import Registry
from robustcli.threat.noise import Noise
from robustcli.threat.threat import ThreatModel

DEFENSES = Registry("defenses")

Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """One batch and its adversarial images.

    Args:
        x: (n, c, h, w) in [0, 1].
        x_adv: the same, or several such blocks one after the other, from an attack that makes several versions.
        y: what the loss asks for: labels (n,), or class shares (n, k) when labels are mixed or smoothed.
    """

    x: Tensor
    y: Tensor
    x_adv: Tensor


def refuse_shares(batch: Batch, defense: str) -> None:
    """For a loss whose equation names the label.

    Raises:
        RobustCliError: the batch has class shares.
    """
    if batch.y.dim() > 1:
        raise RobustCliError(
            f"defense.soft_labels: '{defense}' is published for whole labels, and these are mixed or smoothed; "
            f"leave that out, or choose what it does with them (robust show {defense})"
        )


class OuterLoss(Protocol):
    """What the weights minimise, given the adversarial images."""

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean loss of the batch, a scalar, differentiable in the weights."""
        ...


class RunningLoss(Protocol):
    """An outer loss at work that keeps something between updates, such as a network of its own."""

    @property
    def metrics(self) -> Metrics:
        """What the last evaluation has to say beside its value; the same names every time."""
        ...

    def begin(self, batch: Batch, progress: Progress) -> None:
        """An update begins. Its loss may be evaluated more than once, so what happens once happens here."""
        ...

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean loss of the batch, as of any outer loss."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What is kept, as tensors, numbers and containers of them."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        ...


@runtime_checkable
class StatefulLoss(Protocol):
    """Settings of an outer loss that has to be started, because it keeps something between updates."""

    def start(self, model: nn.Module, optimizer: Optimizer, rng: Noise) -> RunningLoss:
        """Bind it to a model; weights of its own that are to be trained join the optimiser."""
        ...


class Step(Protocol):
    """One update of the weights, with the state that a method keeps between updates."""

    def __call__(self, x: Tensor, labels: Labels, threat: ThreatModel, progress: Progress) -> Metrics:
        """Update the weights on one batch; metrics are scalar tensors on the device, "loss" among them.

        Args:
            x: images (n, c, h, w) in [0, 1].
            labels: of the images.
            threat: the threat model of this update.
            progress: of the training, at this update.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """All state beyond weights, optimiser and noise, as tensors, numbers and containers of them."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        ...


class Defense(Protocol):
    """Settings of a training method.

    Args:
        averaging: how the weights to evaluate follow from those trained.
        is_adversarial: whether losing robustness is a failure; the collapse guard watches only these.
        is_single_step: whether it crafts by a single gradient step, which may overfit catastrophically; the record of
            an epoch then says more of how many steps would differ.
        replays: updates made on each batch before the next one comes; 1 in all but free training.
    """

    @property
    def averaging(self) -> Averaging: ...

    @property
    def is_adversarial(self) -> bool: ...

    @property
    def is_single_step(self) -> bool: ...

    @property
    def replays(self) -> int: ...

    def start(self, model: nn.Module, optimizer: Optimizer, rng: Noise) -> Step:
        """Bind the method to a model, its optimiser and the source of noise."""
        ...
