"""Certified accuracy by interval bound propagation, next to the accuracy under PGD."""

from dataclasses import dataclass

from torch import Tensor, nn

from robustcli.attacks.pgd import Pgd
from robustcli.evaluators import EVALUATORS, AttackContext, Certificate, Certifier, Evaluator, Stage
from robustcli.evaluators.intervals import certified
from robustcli.registry.types import Count
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel


@EVALUATORS.register("interval_bounds", passes=(24, 21, 0), smoke={"steps": 2, "batch_size": 8})
@dataclass(frozen=True, kw_only=True)
class IntervalBounds(Evaluator):
    """Lower bound of the robust accuracy by intervals, and the upper bound of PGD on the same images.

    An image is certified if intervals that surely contain the values of every layer prove that no point of the threat
    set changes its class; `robust show interval_bounds` describes the diagnostic of this name, which computes them over
    several radii. The result has the certified accuracy next to the accuracy under PGD, between which the true robust
    accuracy lies. An image that is certified and broken makes the result SUSPECT.

    When to use: for a guarantee on small networks that were trained for it; for others the bound is 0, which says
    nothing.

    First setting: the defaults.

    Args:
        steps: gradient steps of PGD on the margin, which gives the upper bound.
        batch_size: images per pass; changes memory and speed, not the number.

    Reference: Gowal et al., "Scalable Verified Training for Provably Robust Image Classification", ICCV 2019.
    """

    steps: Count = 20
    batch_size: Count = 100

    @property
    def certifier(self) -> Certifier:
        return _Intervals(self.batch_size)

    def stages(self, context: AttackContext) -> list[Stage]:
        return [Stage.of(Pgd(steps=self.steps, loss="margin", keep="fooled"), self.batch_size)]


@dataclass(frozen=True)
class _Intervals(Certifier):
    batch_size: int

    def certify(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise) -> Certificate:
        return Certificate(certified(model, x, y, threat.radius, self.batch_size))
