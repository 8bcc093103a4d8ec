"""Regularizers r: a penalty on the weights or a projection, in addition to the loss. One per file."""

from abc import abstractmethod
from typing import Protocol

from torch import Tensor, nn

from robustcli.optimization.progress import Progress
from robustcli.optimization.stateless import Stateful
from robustcli.registry.registry import Registry
from robustcli.runtime import ranks

REGULARIZERS = Registry("regularizers")


class RunningRegularizer(Stateful, Protocol):
    """A regularizer of one model with its state; members inherit from it."""

    def penalty(self, model: nn.Module, x: Tensor, y: Tensor, progress: Progress) -> Tensor | None:
        """Return the term that is added to the loss of this update, a differentiable scalar; None for no term.

        It is called once per update, at the unperturbed weights. It must not change batch statistics or global
        generators.

        Args:
            x, y: the clean batch; y may be class shares (n, k).
        """
        return None

    def after(self, model: nn.Module, progress: Progress) -> None:
        """Project the weights after an update; by default they stay."""
        return None


@REGULARIZERS.protocol
class Regularizer(Protocol):
    """Settings of a regularizer."""

    @abstractmethod
    def start(self, model: nn.Module) -> RunningRegularizer:
        """Bind it to a model."""
        ...


def add_penalty(
    regularizer: RunningRegularizer, model: nn.Module, x: Tensor, y: Tensor, progress: Progress
) -> dict[str, Tensor]:
    """Add the gradient of the penalty to that of every trained weight; return the metrics of the step.

    Penalty and loss are differentiated separately, because weight perturbations apply only to the loss.
    """
    penalty = regularizer.penalty(model, x, y, progress)
    if penalty is None:
        return {}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if trained and penalty.requires_grad:
        # Only to the weights: for an input gradient, the images are also leaves of the graph.
        ranks.weighed(penalty).backward(inputs=trained)  # type: ignore[no-untyped-call]
    return {"penalty": penalty.detach()}
