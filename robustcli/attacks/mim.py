"""Momentum iterative method: steps along a running mean of gradients, for every norm."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from robustcli.attacks import ATTACKS, Attack
from robustcli.attacks.ascent import Look, gradient_ascent, once_fooled, step_length
from robustcli.attacks.best_so_far import BestSoFar
from robustcli.attacks.gradient import Objective
from robustcli.attacks.losses import LOSSES, labels_of
from robustcli.registry.types import NonNegative, Positive, Size
from robustcli.threat.noise import Noise
from robustcli.threat.threat import ThreatModel, per_example


@ATTACKS.register("mim", passes=(10, 10, 0), smoke={"steps": 3})
@dataclass(frozen=True, kw_only=True)
class Mim(Attack):
    """PGD with momentum: steps along v <- momentum v + g / mean|g|, each projected back into the threat set.

    Momentum damps directions that only the last gradient has. The example fits the attacked model less closely and
    transfers better. Gradients are normalized by their mean; the paper divides by the sum, which only changes the
    length of v, not the steps.

    When to use: for adversarial images that transfer to other networks.

    First setting: the defaults, inside the evaluator transferred.

    Args:
        steps: gradient steps; 0 returns the start.
        step_size: length of one step in the unit of eps; null is a quarter of eps.
        momentum: mu, weight of the old v; 0 is PGD.
        start: start of the search: the "clean" image, as published, or a "random" point of the threat set.
        loss: "ce", "margin" or "dlr".
        keep: "last" point, "best" (highest loss of all points, including the start), or "fooled" (the first
            misclassified point, otherwise the best).

    Reference: Dong et al., Boosting adversarial attacks with momentum, CVPR 2018.
    """

    steps: Size = 10
    step_size: Positive | None = None
    momentum: NonNegative = 1.0
    start: Literal["clean", "random"] = "clean"
    loss: Literal["ce", "margin", "dlr"] = "ce"
    keep: Literal["last", "best", "fooled"] = "last"

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        labels = labels_of(y)
        start = x if self.start == "clean" else threat.sample(x, rng)
        step_size = step_length(self.step_size, threat)
        velocity = torch.zeros_like(x)

        def move(look: Look) -> Tensor:
            rows = look.rows
            velocity[rows] = self.momentum * velocity[rows] + _at_unit_scale(look.grad)
            return threat.project(look.points + threat.ascent(velocity[rows], look.points, step_size), x[rows])

        best = None if self.keep == "last" else BestSoFar.start(x)
        x_adv = gradient_ascent(
            Objective.at(model, x, y, LOSSES[self.loss]),
            start,
            self.steps,
            move,
            stop=once_fooled(labels) if self.keep == "fooled" else None,
            best=best,
        )
        return x_adv if best is None else best.points


def _at_unit_scale(grad: Tensor) -> Tensor:
    """Divide each image's gradient by its mean absolute value."""
    scale = grad.abs().flatten(1).mean(1).clamp_min(torch.finfo(grad.dtype).tiny)
    return grad / per_example(scale, grad)
