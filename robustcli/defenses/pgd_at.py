"""PGD adversarial training: cross-entropy at the worst point that PGD finds."""

from typing import Literal

from robustcli.attacks.pgd import Pgd
from robustcli.defenses import DEFENSES
from robustcli.defenses.min_max import AdversarialCrossEntropy, MinMax
from robustcli.fields import AttackBn, Positive, Size


@DEFENSES.register("pgd_at", smoke={"steps": 2}, passes=(11, 10, 1))
def pgd_at(
    *,
    steps: Size = 10,
    step_size: Positive | None = None,
    start: Literal["random", "clean"] = "random",
    keep: Literal["last", "best"] = "last",
    attack_bn: AttackBn = "eval",
) -> MinMax:
    """Cross-entropy at the adversarial images of PGD.

    Batch statistics are updated by the adversarial batch, and by every attack forward when attack_bn is
    "train", as in the code of Madry et al. and of Rice et al.; "eval" is what Pang et al. recommend.

    Args:
        steps: gradient steps of the attack.
        step_size: length of one step in the unit of eps; null is a quarter of eps (2/255 for 8/255).
        start: where the attack begins: a random point of the threat set, or the clean image.
        keep: the last point of the attack, or the best by its loss (costs one more forward).
        attack_bn: mode of the model while it is attacked: eval, train or batch_no_update.

    Reference: Madry et al., ICLR 2018; Rice, Wong and Kolter, ICML 2020; Pang et al., ICLR 2021.
    """
    return MinMax(
        attack=Pgd(steps=steps, step_size=step_size, start=start, keep=keep),
        loss=AdversarialCrossEntropy(),
        attack_bn=attack_bn,
    )
