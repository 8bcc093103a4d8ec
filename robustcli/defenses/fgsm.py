"""FGSM adversarial training: cross-entropy at the adversarial image of one gradient step."""

from robustcli.attacks.fgsm import Fgsm
from robustcli.defenses import DEFENSES
from robustcli.defenses.min_max import AdversarialCrossEntropy, MinMax
from robustcli.registry.types import AttackBn


@DEFENSES.register("fgsm", passes=(2, 1, 1))
def fgsm(*, attack_bn: AttackBn = "train") -> MinMax:
    """Cross-entropy at x + eps sign(gradient of the cross-entropy at x).

    The baseline of single-step methods: at common radii it overfits catastrophically, which train.on_collapse detects.
    Batch statistics are updated by the adversarial batch and, with attack_bn "train", by the forward of the attack.

    When to use: as a baseline of catastrophic overfitting, or for very small eps; for fast training prefer n_fgsm.

    First setting: a cyclic schedule of 15 to 30 epochs and a validation split; watch for a sudden fall of robust
    accuracy.

    Reference: Goodfellow, Shlens and Szegedy, ICLR 2015; the failure: Wong, Rice and Kolter, ICLR 2020.
    """
    return MinMax(attack=Fgsm(), loss=AdversarialCrossEntropy(), attack_bn=attack_bn)
