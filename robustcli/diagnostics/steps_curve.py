"""Robust accuracy over the steps of the attack."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from robustcli.attacks import Attack
from robustcli.attacks.pgd import Pgd
from robustcli.attacks.settings import has_setting, with_settings
from robustcli.diagnostics import DIAGNOSTICS
from robustcli.errors import RobustCliError
from robustcli.evaluation.gather import gather
from robustcli.evaluators.attack import Attacked
from robustcli.registry.types import Count
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel


def _margin_pgd() -> Attack:
    return Pgd(loss="margin", keep="fooled")


@dataclass(frozen=True, kw_only=True)
class StepsCurve:
    """The curve over some numbers of steps.

    Args:
        steps: in any order.
        batch_size: images per attack.
        attack: any attack with steps; its own number of steps is ignored. PGD on the margin.
    """

    steps: tuple[int, ...]
    batch_size: int
    attack: Attack = field(default_factory=_margin_pgd)

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


@DIAGNOSTICS.register("steps_curve", smoke={"steps": (1, 4)})
def steps_curve(*, steps: tuple[Count, ...] = (1, 2, 5, 10, 20, 50, 100, 200), batch_size: Count = 250) -> StepsCurve:
    """Robust accuracy over numbers of steps. If the curve still falls at its end, use more steps.

    Each number is a separate attack, from the same starts, on all images that are correct when clean. The curve never
    rises for an attack whose steps do not depend on their number, such as PGD that keeps adversarial examples; other
    attacks may make it rise.

    Args:
        steps: gradient steps, in any order.
        batch_size: images per attack; changes memory and speed, not the curve.

    Reference: Carlini et al., "On Evaluating Adversarial Robustness", arXiv 1902.06705, 2019.
    """
    if not steps:
        raise RobustCliError("steps_curve.steps: the list is empty; expected numbers such as [1, 10, 100]")
    return StepsCurve(steps=steps, batch_size=batch_size)
