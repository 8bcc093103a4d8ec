"""FOSC: how well an attack has converged."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from robustcli.attacks import Attack
from robustcli.diagnostics import DIAGNOSTICS
from robustcli.diagnostics.measuring import attacked, gradients_of, pgd, summary
from robustcli.registry.types import BatchSize
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel


@DIAGNOSTICS.register("fosc")
@dataclass(frozen=True, kw_only=True)
class Fosc:
    """First-order stationary condition at adversarial images: 0 where the attack has converged.

    It is how much the linearized cross-entropy could still rise inside the ball around the clean image: eps times the
    dual norm of the gradient at x', minus <x' - x, gradient>. The bounds [0, 1] are ignored, so pixels at these bounds
    still contribute. At clean images it is eps times the dual norm of the gradient, the largest possible rise.

    Args:
        attack: attack that is measured; PGD with 20 steps on the cross-entropy.

    Reference: Wang et al., "On the Convergence and Robustness of Adversarial Training", ICML 2019.
    """

    batch_size: BatchSize = 250
    attack: Attack = field(default_factory=pgd)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise
    ) -> dict[str, Any]:
        x_adv = attacked(self.attack, model, x, y, threat, rng.split("attack"), self.batch_size)
        at_end = threat.gap(gradients_of(model, x_adv, y, self.batch_size), x_adv, x)
        at_start = threat.gap(gradients_of(model, x, y, self.batch_size), x, x)
        return {"adversarial": summary(at_end), "clean": summary(at_start)}
