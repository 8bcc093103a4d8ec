"""Frank-Wolfe adversarial training: cross-entropy at the result of a few Frank-Wolfe steps."""

from typing import Literal

from robustcli.attacks.frank_wolfe import FrankWolfe
from robustcli.defenses import DEFENSES
from robustcli.defenses.min_max import AdversarialCrossEntropy, MinMax
from robustcli.registry.types import AttackBn, Count, Positive


@DEFENSES.register("fw_at", smoke={"steps": 2}, passes=(8, 7, 1))
def fw_at(
    *,
    steps: Count = 7,
    c: Positive = 2.0,
    start: Literal["clean", "random"] = "clean",
    attack_bn: AttackBn = "eval",
) -> MinMax:
    """Cross-entropy at adversarial images of Frank-Wolfe, whose distortion is recorded.

    A falling distortion means that the gradient turns along the path: few steps no longer suffice, and catastrophic
    overfitting is near. The released code does not clip to [0, 1] and, by mistake, does not normalize its images; this
    implementation does both.

    When to use: to watch the strength of the attack through its distortion.

    First setting: the defaults (7 steps); 2 steps cost little more than a single-step method.

    Args:
        steps: gradient steps of the attack; 1 from the clean image is FGSM.
        c: step k has weight c / (c + k); the released code has 2.
        start: point of the first gradient: the clean image, or a random point of the threat set.

    Reference: Tsiligkaridis and Roberts, CVPR 2022, arXiv 2012.12368.
    """
    return MinMax(attack=FrankWolfe(steps=steps, c=c, start=start), loss=AdversarialCrossEntropy(), attack_bn=attack_bn)
