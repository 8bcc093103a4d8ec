"""No attack: for natural training or clean accuracy."""

from dataclasses import dataclass

from torch import Tensor, nn

from robustcli.attacks import ATTACKS, Attack
from robustcli.threat.noise import Noise
from robustcli.threat.threat import ThreatModel


@ATTACKS.register("none", passes=(0, 0, 0))
@dataclass(frozen=True, kw_only=True)
class NoAttack(Attack):
    """Return the images unchanged.

    When to use: as the attack of natural training.

    First setting: nothing to set.

    Reference: none; the identity.
    """

    start = "clean"
    moves = False

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        return x
