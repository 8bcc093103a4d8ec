"""The w that gets evaluated: the last one, or an average of those that training passed. One per file."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from torch import Tensor, nn

from robustcli.optimization.progress import Progress
from robustcli.registry.registry import Registry

AVERAGING = Registry("averaging")

CleanImages = Callable[[], Iterable[Tensor]]


class RunningAverage(Protocol):
    """The state of an average; it never touches the model that is being trained."""

    def update(self, model: nn.Module, progress: Progress) -> None:
        """Take the weights in, after the update that `progress` counts."""
        ...

    def averaged(self, model: nn.Module, images: CleanImages) -> nn.Module:
        """The network to evaluate; `images` yields clean training batches for batch statistics."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All state, as tensors, numbers and containers of them."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        ...


class Averaging(Protocol):
    """Settings of an average."""

    def start(self, model: nn.Module) -> RunningAverage:
        """Begin with the model as it is."""
        ...
