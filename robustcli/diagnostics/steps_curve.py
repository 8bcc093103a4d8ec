"""Robust accuracy over the steps of the attack."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from robustcli.attacks import Attack
from robustcli.attacks.settings import has_setting, with_settings
from robustcli.diagnostics import DIAGNOSTICS
from robustcli.diagnostics.measuring import margin_pgd
from robustcli.errors import RobustCliError
from robustcli.evaluation.gather import gather
from robustcli.evaluators.attack import Attacked
from robustcli.registry.types import BatchSize, Count
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel


@DIAGNOSTICS.register("steps_curve", smoke={"steps": (1, 4)})
@dataclass(frozen=True, kw_only=True)
class StepsCurve:
    """Robust accuracy over numbers of steps. If the curve still falls at its end, use more steps.

    Each number is a separate attack, from the same starts, on all images that are correct when clean. The curve never
    rises for an attack whose steps do not depend on their number, such as PGD that keeps adversarial examples; other
    attacks may make it rise.

    Args:
        steps: gradient steps, in any order.
        attack: any attack with steps, whose own number is ignored; PGD on the margin.

    Reference: Carlini et al., "On Evaluating Adversarial Robustness", arXiv 1902.06705, 2019.
    """

    steps: tuple[Count, ...] = (1, 2, 5, 10, 20, 50, 100, 200)
    batch_size: BatchSize = 250
    attack: Attack = field(default_factory=margin_pgd)

    def __post_init__(self) -> None:
        if not self.steps:
            raise RobustCliError("steps_curve.steps: the list is empty; expected numbers such as [1, 10, 100]")

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise
    ) -> dict[str, Any]:
        if not has_setting(self.attack, "steps"):
            raise RobustCliError(
                f"steps_curve.attack: {type(self.attack).__name__} has no steps; use one that has, such as pgd"
            )
        curve = []
        for steps in sorted(set(self.steps)):
            evaluator = Attacked(attack=with_settings(self.attack, steps=steps), batch_size=self.batch_size)
            correct = int(gather(evaluator, model, x, y, threat, rng).survives.sum())
            curve.append({"steps": steps, "accuracy": correct / len(x), "correct": correct})
        return {"total": len(x), "curve": curve}
