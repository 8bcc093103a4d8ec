"""Perturbations v of the weights at which the loss is computed. One per file."""

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor, nn

from robustcli.optimization.progress import Progress
from robustcli.optimization.stateless import Stateful
from robustcli.registry.registry import Registry

WEIGHTS = Registry("weights")


class RunningPerturbation(Stateful, Protocol):
    """Perturbs the weights inside a context and removes the perturbation afterwards, also after an error.

    Args:
        steps_inside: whether the optimizer steps at w + v, so that its weight decay acts on w + v, or at w.
    """

    @property
    def steps_inside(self) -> bool: ...

    def around(self, model: nn.Module, loss: Callable[[], Tensor], progress: Progress) -> AbstractContextManager[None]:
        """Context in which the weights are w + v; afterwards v is removed, and updates by an optimizer stay.

        If nothing else changed the weights, they are restored bit for bit. Evaluating `loss` for the perturbation does
        not change batch statistics. With several processes, `loss` is the part of this process, so its gradient is
        averaged by `ranks.mean`.
        """
        ...


@WEIGHTS.protocol
class WeightPerturbation(Protocol):
    """Settings of a weight perturbation."""

    @abstractmethod
    def start(self, model: nn.Module) -> RunningPerturbation:
        """Bind it to a model."""
        ...
