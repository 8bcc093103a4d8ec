"""Averaging: the weights that are evaluated, the last ones or an average over training. One per file."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Protocol

from torch import Tensor, nn

from robustcli.optimization.progress import Progress
from robustcli.optimization.stateless import Stateful
from robustcli.registry.registry import Registry

AVERAGING = Registry("averaging")

CleanImages = Callable[[], Iterable[Tensor]]


class RunningAverage(Stateful, Protocol):
    """An average with its state; it never changes the model that is trained."""

    def update(self, model: nn.Module, progress: Progress) -> None:
        """Include the weights after an update."""
        ...

    def averaged(self, model: nn.Module, images: CleanImages) -> nn.Module:
        """The network to evaluate.

        `images` yields clean training batches for batch statistics; none if there is no time for them, when a run is
        stopped within an epoch.
        """
        ...


@AVERAGING.protocol
class Averaging(Protocol):
    """Settings of an average."""

    @abstractmethod
    def start(self, model: nn.Module) -> RunningAverage:
        """Start with the current weights of the model."""
        ...
