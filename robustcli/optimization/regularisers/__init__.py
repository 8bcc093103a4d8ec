"""r = what is asked of the weights beside the loss: a penalty, a projection, or nothing. One per file."""

from typing import Any, Protocol

from torch import Tensor, nn

from robustcli.optimization.progress import Progress
from robustcli.registry.registry import Registry

REGULARISERS = Registry("regularisers")


class RunningRegulariser(Protocol):
    """A regulariser at work on a model, with what it keeps between updates."""

    def penalty(self, model: nn.Module, x: Tensor, y: Tensor, progress: Progress) -> Tensor | None:
        """The term that joins the loss of this update, a scalar differentiable in the weights; None is no term.

        Asked for once per update, at the weights themselves and not at perturbed ones. It leaves the batch
        statistics and the global generators alone.

        Args:
            x, y: the clean batch; y may be class shares (n, k).
        """
        ...

    def after(self, model: nn.Module, progress: Progress) -> None:
        """The update that `progress` counts was made: move the weights to where they may be."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All state, as tensors, numbers and containers of them."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        ...


class Regulariser(Protocol):
    """Settings of a regulariser."""

    def start(self, model: nn.Module) -> RunningRegulariser:
        """Bind it to a model."""
        ...


def add_penalty(
    regulariser: RunningRegulariser, model: nn.Module, x: Tensor, y: Tensor, progress: Progress
) -> dict[str, Tensor]:
    """Add the gradient of the penalty to that of every weight that is trained; what a step says of it.

    Penalty and loss are differentiated one after the other: the weights may be perturbed for the loss alone.
    """
    penalty = regulariser.penalty(model, x, y, progress)
    if penalty is None:
        return {}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if trained and penalty.requires_grad:
        # To the weights alone: the images are leaves of the graph of an input gradient as well.
        penalty.backward(inputs=trained)  # type: ignore[no-untyped-call]
    return {"penalty": penalty.detach()}
