"""Fast gradient sign method, for every norm: one step of length eps."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from robustcli.attacks import ATTACKS
from robustcli.attacks.crafting import ascend
from robustcli.attacks.losses import LOSSES
from robustcli.noise import Noise
from robustcli.threat import ThreatModel


@ATTACKS.register("fgsm")
@dataclass(frozen=True, kw_only=True)
class Fgsm:
    """One steepest-ascent step of length eps from the clean image.

    Args:
        loss: what the step raises; "kl" and "squared" are refused: their gradient at the clean image is zero.

    Reference: Goodfellow, Shlens and Szegedy, ICLR 2015.
    """

    loss: Literal["ce", "margin", "dlr"] = "ce"

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        loss = LOSSES[self.loss]
        grad, _, _ = ascend(model, x, loss, loss.refer(model, x, y))
        return threat.project(x + threat.ascent(grad, x, threat.radius), x)
