"""SPSA: steps along a gradient estimated from logits, for every norm."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from robustcli.attacks import ATTACKS, Attack
from robustcli.attacks.adam import Adam
from robustcli.attacks.best_so_far import BestSoFar
from robustcli.attacks.losses import LOSSES, AttackLoss, labels_of
from robustcli.registry.types import Count, Positive
from robustcli.threat.noise import Noise
from robustcli.threat.threat import ThreatModel, per_example

# Directions whose random numbers are drawn together; a constant, because noise must not depend on the batch.
_DRAWN = 8


@ATTACKS.register("spsa", passes=(10281, 0, 0), varies_in_passes=True, smoke={"steps": 3, "samples": 20})
@dataclass(frozen=True, kw_only=True)
class Spsa(Attack):
    """Adam steps along the mean of v (l(x' + delta v) - l(x' - delta v)) / (2 delta) over random signs v.

    The search uses only logits, so masked gradients cannot mislead it. Queries near x' are not projected; x' itself is
    projected after every step. An image leaves the batch at its first misclassified point; for the others the point
    with the highest loss is returned. A pass holds as many points as the first batch has images.

    When to use: if you suspect that gradients mislead attacks and trust only the loss.

    First setting: the defaults on some hundred images; more samples before more steps.

    Args:
        steps: moves of an image; each costs 2 samples + 1 forwards.
        samples: directions v per step.
        delta: distance of the queries from x', in pixels of [0, 1].
        lr: learning rate of Adam, in pixels of [0, 1].
        loss: "margin", as published, "ce" or "dlr".

    Reference: Uesato, O'Donoghue, van den Oord and Kohli, Adversarial risk and the dangers of evaluating
        against weak attacks, ICML 2018; simultaneous perturbation: Spall, IEEE TAC 1992.
    """

    steps: Count = 40
    samples: Count = 128
    delta: Positive = 0.01
    lr: Positive = 0.01
    loss: Literal["margin", "ce", "dlr"] = "margin"

    is_black_box = True

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        loss, labels = LOSSES[self.loss], labels_of(y)
        reference = loss.refer(model, x, y)
        best, rows = BestSoFar.start(x), torch.arange(len(x), device=x.device)
        x_adv, adam = x, Adam.start(x)
        for step in range(self.steps + 1):
            with torch.no_grad():
                logits = model(x_adv)
            is_fooled = logits.argmax(1) != labels[rows]
            best.update(x_adv, loss.score(logits, reference[rows]), is_fooled, rows)
            stays = (~is_fooled).nonzero().flatten()
            rows, x_adv, adam = rows[stays], x_adv[stays], adam.rows(stays)
            if step == self.steps or not len(rows):
                break
            source = rng.rows(rows).split(f"step {step}")
            slope = self.slope(model, x_adv, loss, reference[rows], source, len(x))
            x_adv = threat.project(x_adv + self.lr * adam.direction(slope), x[rows])
        return best.points

    def slope(
        self, model: nn.Module, x_adv: Tensor, loss: AttackLoss, reference: Tensor, rng: Noise, limit: int
    ) -> Tensor:
        """Estimate the gradient at x_adv in passes of at most `limit` points."""
        total, left = torch.zeros_like(x_adv), self.samples
        while left:
            count = min(left, _DRAWN)
            numbers = rng.uniform(x_adv[:, None].expand(-1, count, *x_adv.shape[1:]))
            signs = torch.where(numbers < 0.5, -1.0, 1.0).to(x_adv.dtype)
            queries = torch.stack([x_adv[:, None] + side * self.delta * signs for side in (1, -1)], 2)
            with torch.no_grad():
                logits = torch.cat([model(part) for part in torch.split(queries.flatten(0, 2), limit)])
            scores = loss.score(logits, reference.repeat_interleave(2 * count, 0)).view(-1, count, 2)
            rise = (scores[:, :, 0] - scores[:, :, 1]) / (2 * self.delta)
            total += (per_example(rise, signs) * signs).sum(1)
            left -= count
        return total / self.samples
