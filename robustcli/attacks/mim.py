"""Momentum iterative method: steps along a running mean of gradients, for every norm."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from robustcli.attacks import ATTACKS
from robustcli.attacks.crafting import ascend
from robustcli.attacks.losses import LOSSES, labels_of
from robustcli.attacks.worst import Worst
from robustcli.registry.types import NonNegative, Positive, Size
from robustcli.threat.noise import Noise
from robustcli.threat.threat import ThreatModel


@ATTACKS.register("mim", smoke={"steps": 3})
@dataclass(frozen=True, kw_only=True)
class Mim:
    """Steepest-ascent steps along v <- momentum v + g / mean|g|, each projected back into the threat set.

    The past turns a step away from where the last gradient alone points, which fits the model attacked less
    closely and other models better. Gradients count alike however steep the loss is where they were taken;
    the paper divides by their sum, which changes the length of v and no step.

    Args:
        steps: gradient steps; 0 returns the start.
        step_size: length of one step in the unit of eps; null is a quarter of eps.
        momentum: mu, how much of v stays; 0 is PGD.
        start: at the "clean" image, as published, or at a "random" point of the threat set.
        loss: "ce", "margin" or "dlr".
        keep: "last" point, "best" (highest loss of all points, the start included), or "fooled" (the first
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
        loss, labels = LOSSES[self.loss], labels_of(y)
        reference = loss.refer(model, x, y)
        step_size = threat.radius / 4 if self.step_size is None else self.step_size
        found, rows = Worst.of(x), torch.arange(len(x), device=x.device)
        x_adv = x if self.start == "clean" else threat.sample(x, rng)
        velocity = torch.zeros_like(x)
        for _ in range(self.steps):
            grad, scores, logits = ascend(model, x_adv, loss, reference[rows])
            if self.keep == "best":
                found.see(x_adv, scores)
            elif self.keep == "fooled":
                stays = found.see_rows(rows, x_adv, scores, logits.argmax(1) != labels[rows])
                rows, x_adv, grad, velocity = rows[stays], x_adv[stays], grad[stays], velocity[stays]
                if not len(rows):
                    return found.points
            velocity = self.momentum * velocity + _at_unit_scale(grad)
            x_adv = threat.project(x_adv + threat.ascent(velocity, x_adv, step_size), x[rows])
        if self.keep == "last":
            return x_adv
        with torch.no_grad():
            logits = model(x_adv)
        is_fooled = logits.argmax(1) != labels[rows] if self.keep == "fooled" else torch.zeros_like(rows).bool()
        found.see_rows(rows, x_adv, loss.score(logits, reference[rows]), is_fooled)
        return found.points


def _at_unit_scale(grad: Tensor) -> Tensor:
    """Each image's gradient over the mean of its sizes."""
    scale = grad.abs().flatten(1).mean(1).clamp_min(torch.finfo(grad.dtype).tiny)
    return grad / scale.view(-1, *[1] * (grad.dim() - 1))
