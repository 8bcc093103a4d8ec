"""Adversarial training against several threat models: their mean, their worst, one at a time, or one joint path."""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.attacks import Attack
from robustcli.attacks.multi_threat import Alternate, Concatenate, Msd, WithThreat, WorstOf
from robustcli.attacks.pgd import Pgd
from robustcli.defenses import DEFENSES, Batch, StatelessLoss
from robustcli.defenses.min_max import MinMax, StatelessCurriculum
from robustcli.optimization.progress import Progress
from robustcli.registry.types import AttackBn, OtherThreat, Positive, Size
from robustcli.threat.noise import derive
from robustcli.threat.threat import ThreatModel


@dataclass(frozen=True)
class VersionsCrossEntropy(StatelessLoss):
    """CE(f(x'), y), mean over all adversarial versions of all images, which are one batch for the network."""

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        versions = len(batch.x_adv) // len(batch.x)
        return F.cross_entropy(model(batch.x_adv), batch.y.repeat(versions, *[1] * (batch.y.dim() - 1)))


@dataclass(frozen=True)
class OneInTurn(StatelessCurriculum):
    """One of several attacks per update, drawn from the number of the update, so there is no state."""

    def attack(self, attack: Attack, progress: Progress) -> Attack:
        return attack.in_turn(derive(0, "threat", progress.step))


def _combined(
    combine: Literal["max", "average", "random", "msd"],
    others: list[OtherThreat],
    steps: int,
    step_size: float | None,
    start: Literal["random", "clean"],
) -> Attack:
    """Combine the attack on the spec's threat model, which comes first, with the attacks on the others."""
    threats = (None, *(ThreatModel(other.norm, other.eps) for other in others))
    step_sizes = (step_size, *(other.step_size for other in others))
    if combine == "msd":
        return Msd(threats=threats, step_sizes=step_sizes, steps=steps, start=start)
    attacks = tuple(
        WithThreat(attack=Pgd(steps=steps, step_size=size, start=start), threat=threat)
        for threat, size in zip(threats, step_sizes, strict=True)
    )
    if combine == "average":
        return Concatenate(attacks=attacks)
    return WorstOf(attacks=attacks) if combine == "max" else Alternate(attacks=attacks)


@DEFENSES.register("multi_norm", passes=(34, 30, 1), smoke={
    "others": [{"norm": "l2", "eps": 0.5}, {"norm": "l1", "eps": 4.0}], "steps": 2,
})  # fmt: skip
def multi_norm(
    *,
    others: list[OtherThreat],
    combine: Literal["max", "average", "random", "msd"] = "max",
    steps: Size = 10,
    step_size: Positive | None = None,
    start: Literal["random", "clean"] = "random",
    attack_bn: AttackBn = "eval",
) -> MinMax:
    """Cross-entropy at adversarial images of several threat models: the spec's and others.

    Without others it is PGD-AT. "average" takes the mean over all threat models, whose images form one batch; "max"
    takes for each image the version with the highest cross-entropy, which costs one more forward per threat model;
    "random" uses one threat model per batch, at the cost of PGD-AT, in the same order in every run; "msd" follows one
    path and takes at each step the worst of the steps in all threat models. Training uses no clean images. Batch
    statistics are updated by all adversarial images at once. To evaluate robustness to all threat models together, use
    worst_case with members of `under`.

    When to use: for robustness to several norms at once.

    First setting: combine: max with the radii that you evaluate; with three threat models, random costs a third.

    Args:
        others: threat models besides the spec's, each with norm, eps and optionally step_size.
        combine: max, average, random or msd.
        steps: gradient steps in each threat model.
        step_size: length of one step in the spec's threat model, in the unit of its eps; null is a quarter of eps.
        start: start of the attacks: a random point of their threat set (of the spec's, for msd), or the clean image.

    Reference: Tramer and Boneh, NeurIPS 2019 (max and average); Maini, Wong and Kolter, ICML 2020 (msd); Madaan,
        Shin and Hwang, ICML 2021 (random).
    """
    return MinMax(
        attack=_combined(combine, others, steps, step_size, start),
        loss=VersionsCrossEntropy(),
        attack_bn=attack_bn,
        curriculum=OneInTurn(),
    )
