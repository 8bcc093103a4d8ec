"""v = a perturbation of the weights around which the loss is taken, or none. One per file."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor, nn

from robustcli.optimization.progress import Progress
from robustcli.registry.registry import Registry

WEIGHTS = Registry("weights")


class WeightPerturbation(Protocol):
    """Perturbs the weights inside a context and takes the perturbation away again, also after an error.

    Args:
        steps_inside: whether the optimiser steps at w + v, so that its weight decay acts on v too, and not at w.
    """

    @property
    def steps_inside(self) -> bool: ...

    def around(self, model: nn.Module, loss: Callable[[], Tensor], progress: Progress) -> AbstractContextManager[None]:
        """Weights are w + v inside; outside, v is gone and what an optimiser did inside stays.

        If nothing else changed the weights inside, they are afterwards bit for bit what they were.
        Evaluating `loss` for the perturbation does not touch the batch statistics that the model keeps.
        """
        ...
