"""The survivors of an evaluator, without preflight and postflight checks."""

from torch import Tensor, nn

from robustcli.evaluation.gather import gather
from robustcli.evaluators import Evaluator
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel


def standing(
    evaluator: Evaluator, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise
) -> Tensor:
    """Survivors: bool (n,), on the CPU."""
    return gather(evaluator, model, x, y, threat, rng).survives
