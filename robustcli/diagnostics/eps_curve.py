"""Robust accuracy over the radius."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.attacks import Attack
from robustcli.diagnostics import DIAGNOSTICS
from robustcli.diagnostics.measuring import margin_pgd
from robustcli.errors import RobustCliError
from robustcli.evaluation.gather import gather
from robustcli.evaluators.attack import Attacked
from robustcli.registry.types import BatchSize, NonNegative
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel

_MULTIPLES = (0, 0.125, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 3, 4, 8, 16, 32)


@DIAGNOSTICS.register("eps_curve", smoke={"radii": (0, 0.01, 0.04)})
@dataclass(frozen=True, kw_only=True)
class EpsCurve:
    """Robust accuracy over a range of radii, under one attack.

    An image that is broken at one radius counts as broken at all larger ones, because their balls contain the same
    point; the attack only runs on the remaining images. So the curve never rises. It should reach about 0 for large
    radii; if not, suspect gradient masking.

    Args:
        radii: in the unit of eps, such as [0, 2/255, 8/255]; null means 0 to 32 times that of the threat model, in
            linf up to 1.
        attack: attack at every radius; PGD with 20 steps on the margin.

    Reference: Carlini et al., "On Evaluating Adversarial Robustness", arXiv 1902.06705, 2019.
    """

    radii: tuple[NonNegative, ...] | None = None
    batch_size: BatchSize = 250
    attack: Attack = field(default_factory=margin_pgd)

    def __post_init__(self) -> None:
        if self.radii is not None and not self.radii:
            raise RobustCliError("eps_curve.radii: the list is empty; expected radii such as [0, 2/255, 8/255]")

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise
    ) -> dict[str, Any]:
        evaluator = Attacked(attack=self.attack, batch_size=self.batch_size)
        left = torch.arange(len(x), device=x.device)
        curve = []
        for wide in self._threats(threat):
            if len(left):
                survives = gather(evaluator, model, x[left], y[left], wide, rng.rows(left)).survives
                left = left[survives.to(x.device)]
            curve.append({"eps": wide.radius, "accuracy": len(left) / len(x), "correct": len(left)})
        return {"total": len(x), "curve": curve}

    def _threats(self, threat: ThreatModel) -> Iterator[ThreatModel]:
        """Threat models in order of their radius."""
        if self.radii is not None:
            radii = {Fraction(radius).limit_denominator(10**9) for radius in self.radii}
        else:
            radii = {threat.eps * Fraction(multiple) for multiple in _MULTIPLES}
            if threat.norm == "linf":
                # At this radius the ball covers [0, 1].
                radii = {min(radius, Fraction(1)) for radius in radii}
        for radius in sorted(radii):
            yield ThreatModel(threat.norm, radius)
