"""One step from strong noise: the attack of N-FGSM, whose result may lie outside the ball."""

from dataclasses import dataclass

from torch import Tensor, nn

from robustcli.attacks import ATTACKS, Attack
from robustcli.attacks.gradient import input_gradient
from robustcli.attacks.losses import LOSSES
from robustcli.registry.types import NonNegative, Positive
from robustcli.threat.noise import Noise
from robustcli.threat.threat import ThreatModel


@ATTACKS.register("n_fgsm", passes=(1, 1, 0), goes_farther=True)
@dataclass(frozen=True, kw_only=True)
class NFgsm(Attack):
    """One step from noise: delta = eta + alpha sign(gradient at x + eta), eta uniform in k times the ball.

    When to use: in training (see n_fgsm in defenses); as an evaluation it is no stronger than fgsm.

    First setting: the defaults.

    Args:
        noise: k, size of the noise as a multiple of eps; 0 is FGSM.
        step_size: alpha, length of the step in the unit of eps; null is eps.
        clip: clip delta to this many times eps. null does not clip, so results leave the threat set: this is for
            training; evaluations refuse it, and values above 1.
        clamp_noise: whether x + eta is clipped to [0, 1] before the step is added.

    Reference: de Jorge et al., "Make Some Noise", NeurIPS 2022.
    """

    noise: NonNegative = 2.0
    step_size: Positive | None = None
    clip: Positive | None = 1.0
    clamp_noise: bool = True

    steps = 1

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        eta = self.noise * threat.noise(x, rng)
        x_noisy = (x + eta).clamp(0, 1)
        if self.clamp_noise:
            eta = x_noisy - x
        grad, _, _ = input_gradient(model, x_noisy, LOSSES["ce"], y)
        step_size = threat.radius if self.step_size is None else self.step_size
        delta = eta + threat.ascent(grad, x_noisy, step_size)
        if self.clip is not None:
            delta = threat.bound(delta, self.clip * threat.radius)
        return (x + delta).clamp(0, 1)
