"""Averaging: the weights that are evaluated, the last ones or an average over training. One per file."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from torch import Tensor, nn

from robustcli.optimization.progress import Progress
from robustcli.registry.registry import Registry

AVERAGING = Registry("averaging")

CleanImages = Callable[[], Iterable[Tensor]]


class RunningAverage(Protocol):
    """An average with its state; it never changes the model that is trained."""

    def update(self, model: nn.Module, progress: Progress) -> None:
        """Include the weights after an update."""
        ...

    def averaged(self, model: nn.Module, images: CleanImages) -> nn.Module:
        """The network to evaluate; `images` yields clean training batches for batch statistics."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """State, as tensors, numbers and containers of them."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        ...


@AVERAGING.protocol
class Averaging(Protocol):
    """Settings of an average."""

    @abstractmethod
    def start(self, model: nn.Module) -> RunningAverage:
        """Start with the current weights of the model."""
        ...
