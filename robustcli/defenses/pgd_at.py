"""PGD adversarial training: cross-entropy at the worst point that PGD finds."""

from dataclasses import dataclass
from typing import Literal

from robustcli.attacks import Attack
from robustcli.attacks.pgd import Pgd
from robustcli.defenses import DEFENSES
from robustcli.defenses.min_max import AdversarialCrossEntropy, MinMax, StatelessCurriculum, adjusted
from robustcli.errors import RobustCliError
from robustcli.optimization.progress import Progress
from robustcli.registry.types import AttackBn, ProperShare, Start, Steps, StepSize
from robustcli.threat.noise import derive


@dataclass(frozen=True, kw_only=True)
class CleanBatches(StatelessCurriculum):
    """Start the attack at the clean images in a share of the batches."""

    share: float

    def attack(self, attack: Attack, progress: Progress) -> Attack:
        if attack.start == "clean":
            raise RobustCliError(
                "defense.clean_batches: starts the attack at the clean images in some batches, which needs an "
                "attack with another start; write start: random, or remove clean_batches"
            )
        # Chosen by the number of the update, so there is nothing to draw or to save.
        is_clean = derive(0, "clean batch", progress.step) < self.share * 2**63
        return adjusted(attack, start="clean") if is_clean else attack


@DEFENSES.register("pgd_at", added={"reach_eps": False, "clean_batches": 0.0}, smoke={"steps": 2}, passes=(11, 10, 1))
def pgd_at(
    *,
    steps: Steps = 10,
    step_size: StepSize = None,
    start: Start = "random",
    keep: Literal["last", "best"] = "last",
    attack_bn: AttackBn = "eval",
    reach_eps: bool = False,
    clean_batches: ProperShare = 0.0,
) -> MinMax:
    """Cross-entropy at the adversarial images of PGD.

    Batch statistics are updated by the adversarial batch and, with attack_bn "train", by every forward of the attack,
    as in the code of Madry et al. and of Rice et al.; Pang et al. recommend "eval". The code of Rice et al. makes two
    more forwards in train mode per update, which only move running statistics: the loss at the last point of the
    attack (`keep: best` does the same) and the accuracy on the clean batch, which is omitted here.

    When to use: as the baseline of every comparison, and whenever in doubt.

    First setting: 10 steps in eval mode, with select: robust on validation images, because robust accuracy falls
    late in training.

    Args:
        keep: the last point of the attack, or the one with the highest loss (costs one more forward).
        reach_eps: whether steps whose sum is shorter than eps are lengthened to eps / steps.
        clean_batches: share of the batches whose attack starts at the clean images regardless of `start`, in the same
            updates for every seed; 0.2 in the code that smooth adversarial training builds on.

    Reference: Madry et al., ICLR 2018; Rice, Wong and Kolter, ICML 2020; Pang et al., ICLR 2021; reach_eps and
        clean_batches: Xie et al., CVPR 2019.
    """
    return MinMax(
        attack=Pgd(steps=steps, step_size=step_size, start=start, keep=keep, reach_eps=reach_eps),
        loss=AdversarialCrossEntropy(),
        attack_bn=attack_bn,
        curriculum=CleanBatches(share=clean_batches) if clean_batches else StatelessCurriculum(),
    )
