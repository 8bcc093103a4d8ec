"""RS-FGSM: FGSM adversarial training from a random start, with a step that overshoots."""

from robustcli.attacks.fgsm import Fgsm
from robustcli.defenses import DEFENSES
from robustcli.defenses.min_max import AdversarialCrossEntropy, MinMax
from robustcli.registry.types import AttackBn, Positive


@DEFENSES.register("rs_fgsm", passes=(2, 1, 1))
def rs_fgsm(*, step_size: Positive | None = None, clamp_noise: bool = True, attack_bn: AttackBn = "train") -> MinMax:
    """Cross-entropy after one projected step from a random point of the threat set.

    The random start mainly shortens the perturbation, which delays catastrophic overfitting but does not prevent it.
    Batch statistics are updated by the adversarial batch and, with attack_bn "train", by the forward of the attack.

    When to use: for short runs at the cost of two passes, with eps up to about 8/255.

    First setting: the cyclic schedule with 15 to 30 epochs; change to n_fgsm if robust accuracy falls suddenly.

    Args:
        step_size: length of the step in the unit of eps; null is 1.25 eps (10/255 for 8/255).
        clamp_noise: whether the starting noise is clipped to [0, 1] before the step, as in the released code for CIFAR
            and ImageNet; false, as in that for MNIST, clips only the sum.

    Reference: Wong, Rice and Kolter, "Fast is better than free", ICLR 2020.
    """
    return MinMax(
        attack=Fgsm(start="random" if clamp_noise else "unclamped", step_size=step_size),
        loss=AdversarialCrossEntropy(),
        attack_bn=attack_bn,
    )
