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

    The images trained on lie outside the threat set by design: up to (k + 1) eps away, and 1.5 eps on average.
    Only the box holds them, unless `clip` does. Where the paper says "no clipping" it means the ball. Batch
    statistics are updated by the adversarial batch and, with attack_bn "train", by the forward of the attack.

    When to use: for adversarial training at the cost of two passes, where rs_fgsm collapses.

    First setting: noise 2 with the cyclic schedule of rs_fgsm, and noise 3 if training still collapses.

    Args:
        noise: k, size of the noise as a multiple of eps; larger for a wider network or a larger radius (3 or 4).
        step_size: alpha, length of the step in the unit of eps; null is eps.
        clip: the perturbation is cut to this many times eps; null (as published) is no cut, 1 the threat set.
        clamp_noise: whether the noise itself is cut at the box before the step is added, as in the released code
            for CIFAR; false, as in that for ImageNet, cuts only the sum.
        attack_bn: mode of the model while it is attacked: train (as released), eval or batch_no_update.

    Reference: de Jorge et al., "Make Some Noise: Reliable and Efficient Single-Step Adversarial Training",
        NeurIPS 2022.
    """
    return MinMax(
        attack=NFgsm(noise=noise, step_size=step_size, clip=clip, clamp_noise=clamp_noise),
        loss=AdversarialCrossEntropy(),
        attack_bn=attack_bn,
    )
