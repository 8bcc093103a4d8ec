"""The attack of Carlini and Wagner: the nearest misclassified point in l2, by minimizing one objective."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from robustcli.attacks import ATTACKS, Attack
from robustcli.attacks.adam import Adam
from robustcli.attacks.best_so_far import NearestSoFar
from robustcli.attacks.losses import labels_of, margin
from robustcli.registry.types import Count, NonNegative, Positive
from robustcli.threat.noise import Noise
from robustcli.threat.threat import ThreatModel

# Slightly inside [0, 1], because the change of variable is infinite at the bounds.
_INSIDE = 0.999999
# Steps between two checks of which images are done, because a check waits for the accelerator.
_LOOKS_EVERY = 10
# A descent continues while a tenth of its steps lowers the objective below this fraction of its value, or moves some
# pixel towards gray by more than this many steps: near black and white such a move changes the objective only later.
_FALLS = 0.9999
_MOVES = 2
# Factor on c while no point fools the model.
_GROWTH = 10


@ATTACKS.register(
    "carlini_wagner",
    passes=(9001, 9000, 0),
    varies_in_passes=True,
    norms=("l2",),
    smoke={"steps": 40, "searches": 3, "c": 1.0, "lr": 0.03},
)
@dataclass(frozen=True, kw_only=True)
class CarliniWagner(Attack):
    """Minimum-norm attack: min |x' - x|^2 + c max(0, z_y - max of other z + confidence), x' = (tanh w + 1) / 2.

    The variable w keeps x' inside [0, 1]; Adam minimizes over w. Each image has its own c, which is multiplied by 10
    until a misclassified point is found, then bisected towards the smallest c that finds one. The search ignores the
    radius: an image is broken if a misclassified point lies inside the threat set; otherwise the clean image is
    returned. No noise is drawn. Supports only l2.

    When to use: for the nearest adversarial image in l2, or if you suspect gradient masking.

    First setting: keep: fooled for an accuracy, keep: nearest for distances; fewer searches if c is known.

    Args:
        steps: steps of Adam for each c; stops earlier when the objective no longer falls and no pixel moves from black
            or white towards gray. The released code has 10,000.
        searches: number of values of c.
        c: the first value.
        lr: learning rate of Adam, in units of w: a step moves a gray pixel by about lr / 2; use a smaller value for
            distances that are not many times larger.
        confidence: margin by which a wrong logit must lead, kappa in the paper.
        keep: "fooled": stop at a misclassified point inside the threat set. "nearest": search to the end for the
            nearest one.

    Reference: Carlini and Wagner, Towards evaluating the robustness of neural networks, IEEE S&P 2017.
    """

    steps: Count = 1000
    searches: Count = 9
    c: Positive = 0.001
    lr: Positive = 0.01
    confidence: NonNegative = 0.0
    keep: Literal["fooled", "nearest"] = "fooled"

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        threat.require_norm("carlini_wagner", "l2")
        labels, found = labels_of(y), NearestSoFar.start(x)
        with torch.no_grad():
            # For a misclassified image, this is the nearest point.
            rows = (model(x).argmax(1) == labels).nonzero().flatten()
        reach = found.distances
        low, c, high = torch.zeros_like(reach), torch.full_like(reach, self.c), reach.clone()
        for _ in range(self.searches):
            if not len(rows):
                break
            points, sizes = self._descend(model, x[rows], labels[rows], c[rows], threat)
            found.update(points, sizes, sizes <= threat.radius, rows)
            is_found = sizes.isfinite()
            high[rows] = torch.where(is_found, c[rows], high[rows])
            low[rows] = torch.where(is_found, low[rows], c[rows])
            c = torch.where(high.isinf(), _GROWTH * c, (low + high) / 2)
            if self.keep == "fooled":
                rows = rows[reach[rows] > threat.radius]
        return found.points

    def _descend(
        self, model: nn.Module, x: Tensor, labels: Tensor, c: Tensor, threat: ThreatModel
    ) -> tuple[Tensor, Tensor]:
        """Return the nearest misclassified point of a descent and its distance, infinite if there is none."""
        nearest = NearestSoFar.start(x)
        rows, origin = torch.arange(len(x), device=x.device), x
        # Pixels may leave [0, 1] by rounding.
        w = torch.atanh(_INSIDE * (2 * x.clamp(0, 1) - 1))
        adam, before, w_before = Adam.start(w), torch.full_like(c, torch.inf), w
        tenth = max(self.steps // 10, 1)
        for step in range(1, self.steps + 1):
            w.requires_grad_()
            with torch.enable_grad():
                x_adv = (w.tanh() + 1) / 2
                logits = model(x_adv)
                lead = margin(logits, labels[rows])
                distance = (x_adv - origin).square().flatten(1).sum(1)
                objective = distance + c[rows] * (self.confidence - lead).clamp_min(0)
                (grad,) = torch.autograd.grad(objective.sum(), w)
            x_adv, size = x_adv.detach(), threat.size(x_adv.detach() - origin)
            is_fooled = (logits.argmax(1) != labels[rows]) & (lead.detach() >= self.confidence)
            nearest.update(x_adv, size, is_fooled, rows)
            w = w.detach() - self.lr * adam.direction(grad)
            stays = torch.ones_like(is_fooled)
            if step % tenth == 0:
                moves = (w_before.abs() - w.abs()).flatten(1).amax(1)
                stays = (objective.detach() <= _FALLS * before) | (moves > _MOVES * self.lr)
                before, w_before = objective.detach(), w
            if self.keep == "fooled" and step % _LOOKS_EVERY == 0:
                stays = stays & (nearest.distances[rows] > threat.radius)
            if (step % tenth == 0 or step % _LOOKS_EVERY == 0) and not bool(stays.all()):
                rows, origin, w, w_before = rows[stays], origin[stays], w[stays], w_before[stays]
                before, adam = before[stays], adam.rows(stays)
                if not len(rows):
                    break
        return nearest.points, nearest.distances
