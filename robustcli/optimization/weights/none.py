"""No weight perturbation."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor, nn

from robustcli.optimization.progress import Progress
from robustcli.optimization.stateless import Stateless
from robustcli.optimization.weights import WEIGHTS


@WEIGHTS.register("none", passes=(0, 0, 0))
@dataclass(frozen=True, kw_only=True)
class Unperturbed(Stateless):
    """Compute the loss at the weights themselves.

    Reference: none; v = 0.
    """

    steps_inside = True

    def around(self, model: nn.Module, loss: Callable[[], Tensor], progress: Progress) -> AbstractContextManager[None]:
        return nullcontext()
