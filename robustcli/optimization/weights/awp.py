"""Adversarial weight perturbation: the loss is computed at the worst weights nearby."""

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

# Avoids a division by zero: a layer whose gradient is zero does not move.
_TINY = 1e-20


@WEIGHTS.register("awp", smoke={"gamma": 0.01}, passes=(1, 0, 1))
@dataclass(frozen=True, kw_only=True)
class Awp(Stateless):
    """v_l = gamma |w_l| g_l / |g_l| for every convolution and linear weight, g the gradient of the full loss.

    One ascent step; norms are per tensor (Frobenius); batch norms and biases do not move. The authors take the step on
    a copy of the network, which gives the same v, because v is normalized. As in their code, the optimizer steps at
    w + v, so weight decay acts on w + v; then v is removed. The two extra forwards of the released loop for PGD-AT
    (see pgd_at) are omitted.

    When to use: against robust overfitting in long training, added to any defense.

    First setting: gamma 0.005 with trades, 0.01 with pgd_at.

    Args:
        gamma: size of v relative to the weights, per tensor; the released code has 0.01 for PGD-AT and
            0.005 for TRADES. 0 is no perturbation.
        warmup: epochs before the perturbation starts.

    Reference: Wu, Xia and Wang, NeurIPS 2020, section 4 and Algorithm 1.
    """

    gamma: NonNegative = 0.01
    warmup: NonNegative = 0.0

    # As released: weight decay acts on w + v.
    steps_inside = True

    @contextmanager
    def around(self, model: nn.Module, loss: Callable[[], Tensor], progress: Progress) -> Iterator[None]:
        if self.gamma == 0 or progress.epoch < self.warmup:
            yield
            return
        weights = [
            parameter
            for name, parameter in model.named_parameters()
            if "weight" in name and parameter.dim() > 1 and parameter.requires_grad
        ]
        with statistics_held(model):
            grads = ranks.mean(torch.autograd.grad(loss(), weights, allow_unused=True))
        moved = [(w, g) for w, g in zip(weights, grads, strict=True) if g is not None]
        if not moved:
            yield
            return
        with torch.no_grad():
            # One kernel for all tensors: a network has hundreds of small ones.
            lengths = torch.stack(torch._foreach_norm([w for w, _ in moved]))
            slopes = torch.stack(torch._foreach_norm([g for _, g in moved]))
            factors = self.gamma * lengths / (slopes + _TINY)
            steps = list(torch._foreach_mul([g for _, g in moved], list(factors.unbind())))
        with perturbed_weights([w for w, _ in moved], steps):
            yield
