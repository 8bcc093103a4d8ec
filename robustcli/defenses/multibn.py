"""MultiBN training: separate batch norms for clean images and each kind of adversarial image."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.architectures.branches import branched_of, with_kinds
from robustcli.attacks import Attack
from robustcli.attacks.multi_threat import Concatenate, WithThreat
from robustcli.attacks.pgd import Pgd
from robustcli.attacks.through_branch import ThroughBranch
from robustcli.defenses import DEFENSES, Batch, StatelessLoss
from robustcli.defenses.min_max import MinMax
from robustcli.registry.types import AttackBn, NonNegative, OtherThreat, Positive, Size
from robustcli.threat.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class BranchesCrossEntropy(StatelessLoss):
    """Mean over branches k of CE(f_k(x_k), y) + gate_weight CE(gate(x_k), k), mean over the batch.

    x_0 is the clean batch, x_k the k-th block of the adversarial batch, and f_k the network with branch k.
    """

    branches: int
    gate_weight: float

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        part = branched_of(model, self.branches)
        total = batch.x.new_zeros(())
        versions = (batch.x, *torch.split(batch.x_adv, len(batch.x)))
        for branch, points in enumerate(versions):
            logits, kinds = with_kinds(model, part, points, branch)
            total = total + F.cross_entropy(logits, batch.y)
            if kinds is not None:
                label = torch.full((len(points),), branch, device=points.device)
                total = total + self.gate_weight * F.cross_entropy(kinds.to(logits.dtype), label)
        return total / self.branches


def _through_each(
    others: list[OtherThreat],
    attack_through: Literal["branch", "gate"],
    steps: int,
    step_size: float | None,
    start: Literal["random", "clean"],
) -> Concatenate:
    """PGD in the spec's threat model, which comes first, and in the others."""
    attacks: list[Attack] = [Pgd(steps=steps, step_size=step_size, start=start)]
    for other in others:
        pgd = Pgd(steps=steps, step_size=other.step_size, start=start)
        attacks.append(WithThreat(attack=pgd, threat=ThreatModel(other.norm, other.eps)))
    if attack_through == "branch":
        branches = len(attacks) + 1
        attacks = [ThroughBranch(attack=a, branch=k, branches=branches) for k, a in enumerate(attacks, 1)]
    return Concatenate(attacks=tuple(attacks))


@DEFENSES.register(
    "multibn", trains="multibn", smoke={"others": [{"norm": "l2", "eps": 0.5}], "steps": 2}, passes=(23, 20, 3)
)
def multibn(
    *,
    others: list[OtherThreat],
    gate_weight: NonNegative = 1.0,
    attack_through: Literal["branch", "gate"] = "branch",
    steps: Size = 10,
    step_size: Positive | None = None,
    start: Literal["random", "clean"] = "random",
    attack_bn: AttackBn = "eval",
) -> MinMax:
    """Cross-entropy of clean and of adversarial images, each kind with its own batch norms.

    Trains the architecture of the same name, which needs one branch for clean images, one for the spec's threat model
    and one for each of the others. In training the kind of every image is known, so each branch collects statistics of
    its kind only. The gate learns the kinds by its own cross-entropy and gets no gradient from the classes. Without
    others it is training with two sets of batch norms (the published loss is the sum, here it is the mean). The
    published kinds are clean, PGD and occluded videos; here they are norms.

    When to use: where clean images and several threat models should not share batch statistics.

    First setting: the architecture multibn around preact_resnet18, with one branch more than there are threat models.

    Args:
        others: threat models besides the spec's, each with norm, eps and optionally step_size; [] for none.
        gate_weight: weight of the gate's cross-entropy; no value is published.
        attack_through: path of the attacks: their own "branch", as released, or the network with its "gate", as an
            attacker of the trained network sees it.
        steps: gradient steps in each threat model.
        step_size: length of one step in the spec's threat model, in the unit of its eps; null is a quarter of eps.
        start: start of the attacks: a random point of their threat set, or the clean image.

    Reference: Lo and Patel, IEEE TIP 2022; two branches: Xie and Yuille, ICLR 2020; Xie et al., CVPR 2020.
    """
    return MinMax(
        attack=_through_each(others, attack_through, steps, step_size, start),
        loss=BranchesCrossEntropy(branches=2 + len(others), gate_weight=gate_weight),
        attack_bn=attack_bn,
    )
