"""Adversarial logit pairing: clean and adversarial images in equal parts, with similar logits for both."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.attacks.pgd import Pgd
from robustcli.defenses import DEFENSES, Batch, StatelessLoss
from robustcli.defenses.min_max import MinMax
from robustcli.registry.types import AttackBn, NonNegative, Start, Steps, StepSize


@dataclass(frozen=True, kw_only=True)
class AlpLoss(StatelessLoss):
    """1/2 [CE(f(x), y) + CE(f(x'), y)] + weight * d(f(x), f(x')), mean over the batch.

    d is |f(x) - f(x')|^2 when `pairing` is "squared", |f(x) - f(x')| when it is "norm". With
    `cross_entropies` "sum" the 1/2 is left out.
    """

    pairing_weight: float
    pairing: Literal["squared", "norm"]
    cross_entropies: Literal["mean", "sum"]

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        logits, logits_adv = model(batch.x), model(batch.x_adv)
        loss = F.cross_entropy(logits, batch.y) + F.cross_entropy(logits_adv, batch.y)
        if self.cross_entropies == "mean":
            loss = loss / 2
        distance: Tensor = torch.linalg.vector_norm(logits - logits_adv, dim=1)
        if self.pairing == "squared":
            distance = distance.square()
        return loss + self.pairing_weight * distance.mean()


@DEFENSES.register("alp", smoke={"steps": 2}, passes=(12, 10, 2))
def alp(
    *,
    pairing_weight: NonNegative = 0.5,
    pairing: Literal["squared", "norm"] = "squared",
    cross_entropies: Literal["mean", "sum"] = "mean",
    steps: Steps = 10,
    step_size: StepSize = None,
    start: Start = "random",
    attack_bn: AttackBn = "eval",
) -> MinMax:
    """Cross-entropy on clean and adversarial images plus the distance between their logits.

    Batch statistics see the clean batch once and the adversarial batch once.

    When to use: to reproduce work on logit pairing. Its robustness falls under longer attacks and many restarts, so
    evaluate it with autoattack.

    First setting: the defaults with pairing: squared and 10 steps; compare with half_half, which is the same loss
    without the pairing.

    Args:
        pairing_weight: lambda, the weight of the distance; 0 trains on clean and adversarial images in equal parts.
        pairing: "squared", the squared distance as in the paper, or "norm", the distance itself, as in the
            public re-implementation MTandHJ/PyTorch-Robust.
        cross_entropies: "mean" of the clean and the adversarial cross-entropy, our reading of the paper, or their
            "sum", as in that re-implementation.

    Reference: Kannan, Kurakin and Goodfellow, 2018, arXiv 1803.06373.
    """
    return MinMax(
        attack=Pgd(steps=steps, step_size=step_size, start=start),
        loss=AlpLoss(pairing_weight=pairing_weight, pairing=pairing, cross_entropies=cross_entropies),
        attack_bn=attack_bn,
    )
