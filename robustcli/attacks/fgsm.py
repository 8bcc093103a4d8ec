"""Fast gradient sign method, for every norm: one large step."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from robustcli.attacks import ATTACKS, Attack
from robustcli.attacks.gradient import input_gradient
from robustcli.attacks.losses import LOSSES
from robustcli.registry.types import Positive
from robustcli.threat.noise import Noise
from robustcli.threat.threat import ThreatModel

# Default step in units of eps: from x it reaches the surface of the ball; from a random point it is a quarter longer,
# as in Wong et al.
_REACH = {"clean": 1.0, "random": 1.25, "unclamped": 1.25}


@ATTACKS.register("fgsm", passes=(1, 1, 0))
@dataclass(frozen=True, kw_only=True)
class Fgsm(Attack):
    """One steepest-ascent step, projected back into the threat set.

    When to use: for a first look, and to detect catastrophic overfitting. Robustness to this attack means little.

    First setting: start: clean, and compare with pgd of 20 steps.

    Args:
        start: "clean": x. "random": a random point of the threat set. "unclamped": the same, but the noise is not
            clipped to [0, 1] before the step. This matters for black and white pixels: most of them then end at
            distance eps.
        step_size: length of the step in the unit of eps; null is eps from x, and 1.25 eps otherwise.
        loss: objective; "kl" and "squared" are refused, because their gradient at the clean image is zero.

    Reference: Goodfellow, Shlens and Szegedy, ICLR 2015; random start: Wong, Rice and Kolter, ICLR 2020.
    """

    start: Literal["clean", "random", "unclamped"] = "clean"
    step_size: Positive | None = None
    loss: Literal["ce", "margin", "dlr"] = "ce"

    steps = 1

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        loss = LOSSES[self.loss]
        start = x if self.start == "clean" else x + threat.noise(x, rng)
        if self.start == "random":
            start = threat.project(start, x)
        grad, _, _ = input_gradient(model, start, loss, loss.refer(model, x, y))
        step_size = _REACH[self.start] * threat.radius if self.step_size is None else self.step_size
        return threat.project(start + threat.ascent(grad, start, step_size), x)
