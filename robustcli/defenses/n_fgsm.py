"""N-FGSM: FGSM adversarial training from strong noise, without projection."""

from robustcli.attacks.n_fgsm import NFgsm
from robustcli.defenses import DEFENSES
from robustcli.defenses.min_max import AdversarialCrossEntropy, MinMax
from robustcli.registry.types import AttackBn, NonNegative, Positive


@DEFENSES.register("n_fgsm", goes_farther=True, passes=(2, 1, 1))
def n_fgsm(
    *,
    noise: NonNegative = 2.0,
    step_size: Positive | None = None,
    clip: Positive | None = None,
    clamp_noise: bool = True,
    attack_bn: AttackBn = "train",
) -> MinMax:
    """Cross-entropy at x + eta + alpha sign(gradient at x + eta), with eta uniform in k times the ball.

    By design, training images lie outside the threat set: up to (k + 1) eps away, and 1.5 eps on average. They are
    clipped to [0, 1], and to the ball only with `clip`; "no clipping" in the paper means the ball. Batch statistics
    are updated by the adversarial batch and, with attack_bn "train", by the forward of the attack.

    When to use: for adversarial training at the cost of two passes, where rs_fgsm collapses.

    First setting: noise 2 with the cyclic schedule of rs_fgsm; noise 3 if training still collapses.

    Args:
        noise: k, size of the noise as a multiple of eps; 3 or 4 for a wider network or a larger radius.
        step_size: alpha, length of the step in the unit of eps; null is eps.
        clip: clip the perturbation to this many times eps; null (as published) does not clip, 1 is the threat set.
        clamp_noise: whether the noise is clipped to [0, 1] before the step is added, as in the released code for
            CIFAR; false, as in that for ImageNet, clips only the sum.

    Reference: de Jorge et al., "Make Some Noise: Reliable and Efficient Single-Step Adversarial Training",
        NeurIPS 2022.
    """
    return MinMax(
        attack=NFgsm(noise=noise, step_size=step_size, clip=clip, clamp_noise=clamp_noise),
        loss=AdversarialCrossEntropy(),
        attack_bn=attack_bn,
    )
