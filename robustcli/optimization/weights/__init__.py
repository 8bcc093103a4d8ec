"""Perturbations v of the weights around which the loss is taken. One per file."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn

from robustcli.optimization.progress import Progress
from robustcli.registry.registry import Registry

WEIGHTS = Registry("weights")


class RunningPerturbation(Protocol):
    """Perturbs the weights inside a context and removes the perturbation afterwards, also after an error.

    Args:
        steps_inside: whether the optimizer steps at w + v, so that its weight decay acts on w + v, or at w.
    """

    @property
    def steps_inside(self) -> bool: ...

    def around(self, model: nn.Module, loss: Callable[[], Tensor], progress: Progress) -> AbstractContextManager[None]:
        """Weights are w + v inside; outside, v is gone, and what an optimizer did inside stays.

        If nothing else changed the weights inside, they are afterwards bit for bit what they were.
        Evaluating `loss` for the perturbation does not change the batch statistics that the model keeps. With several
        processes it is the part of this one, so `ranks.mean` is taken of its gradient.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """State, as tensors, numbers and containers of them."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        ...


class WeightPerturbation(Protocol):
    """Settings of a weight perturbation."""

    def start(self, model: nn.Module) -> RunningPerturbation:
        """Bind it to a model."""
        ...
