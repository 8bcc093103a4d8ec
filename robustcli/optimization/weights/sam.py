"""Sharpness-aware minimization: the loss is computed at the worst weights in a ball around the weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustcli.attacks.crafting import statistics_held
from robustcli.optimization.progress import Progress
from robustcli.optimization.stateless import Stateless
from robustcli.optimization.weights import WEIGHTS
from robustcli.optimization.weights.perturbed_weights import perturbed_weights
from robustcli.registry.types import NonNegative
from robustcli.runtime import ranks

# Avoids a division by zero: weights do not move where the gradient is zero.
_TINY = 1e-20


@WEIGHTS.register("sam", smoke={"rho": 0.05}, passes=(1, 0, 1))
@dataclass(frozen=True, kw_only=True)
class Sam(Stateless):
    """v = rho g / |g| with g the gradient of the full loss in all trained parameters and |g| its global norm.

    In contrast to AWP, biases and batch norms move too, and the norm is not per layer. The weights are restored before
    the optimizer steps, so weight decay acts on w. With natural training it is SAM; with any other loss it perturbs
    the weights against that loss.

    Args:
        rho: length of v; 0.05 in the paper's experiments. 0 is no perturbation.

    Reference: Foret et al., ICLR 2021, arXiv 2010.01412, Algorithm 1; its small gain in robustness: Wei et al., arXiv
        2305.05392.
    """

    rho: NonNegative = 0.05

    steps_inside = False

    @contextmanager
    def around(self, model: nn.Module, loss: Callable[[], Tensor], progress: Progress) -> Iterator[None]:
        if self.rho == 0:
            yield
            return
        weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        with statistics_held(model):
            grads = ranks.mean(torch.autograd.grad(loss(), weights, allow_unused=True))
        moved = [(w, g) for w, g in zip(weights, grads, strict=True) if g is not None]
        length = torch.stack([g.norm() for _, g in moved]).norm()
        with perturbed_weights([w for w, _ in moved], [self.rho / (length + _TINY) * g for _, g in moved]):
            yield
