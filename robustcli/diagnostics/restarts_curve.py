"""Robust accuracy over the restarts of the attack."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from robustcli.attacks import Attack
from robustcli.diagnostics import DIAGNOSTICS
from robustcli.diagnostics.measuring import margin_pgd
from robustcli.errors import RobustCliError
from robustcli.evaluation.gather import gather
from robustcli.evaluators import AttackContext, Evaluator, Stage
from robustcli.registry.types import BatchSize, Count
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class _Tries(Evaluator):
    """One attack, repeated with different noise."""

    attack: Attack
    count: int
    batch_size: int

    def stages(self, context: AttackContext) -> list[Stage]:
        names = [f"try {number}" for number in range(self.count)]
        return [Stage(name=name, attack=self.attack, noise=name, batch_size=self.batch_size) for name in names]


@DIAGNOSTICS.register("restarts_curve", smoke={"restarts": 3})
@dataclass(frozen=True, kw_only=True)
class RestartsCurve:
    """Robust accuracy over restarts: an image counts until one attempt breaks it.

    The first point, 0 restarts, is the clean accuracy. If the curve still falls at its end, the attack depends on its
    random start, and the true robust accuracy is lower than a few restarts suggest.

    Args:
        restarts: largest number of independent attempts.
        attack: one attempt, from a random start; PGD with 20 steps on the margin.

    Reference: Mosbach et al., "Logit Pairing Methods Can Fool Gradient-Based Attacks", arXiv 1810.12042, 2018.
    """

    restarts: Count = 10
    batch_size: BatchSize = 250
    attack: Attack = field(default_factory=margin_pgd)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise
    ) -> dict[str, Any]:
        if self.attack.start == "clean":
            raise RobustCliError("restarts_curve.attack: attempts from start 'clean' are all the same; use 'random'")
        tries = _Tries(attack=self.attack, count=self.restarts, batch_size=self.batch_size)
        evidence = gather(tries, model, x, y, threat, rng)
        correct = int((evidence.clean == evidence.labels).sum())
        curve = [{"restarts": 0, "accuracy": correct / len(x), "correct": correct}]
        # At radius 0 there is no stage, and no attempt can break an image.
        broken = [stage.broken for stage in evidence.stages] or [0] * self.restarts
        for number, count in enumerate(broken, start=1):
            correct -= count
            curve.append({"restarts": number, "accuracy": correct / len(x), "correct": correct})
        return {"total": len(x), "curve": curve}
