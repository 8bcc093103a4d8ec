"""Noise for attacks, predictions, and the survivors of an evaluator without preflight and postflight checks."""

import torch
from torch import Tensor, nn

from robustcli.evaluation.gather import gather
from robustcli.evaluators import Evaluator
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel


def noise(count: int, seed: int = 0) -> IndexedNoise:
    """Noise for the first `count` images of a data set."""
    return IndexedNoise(seed, torch.arange(count))


def predictions(model: nn.Module, x: Tensor) -> Tensor:
    """Predicted labels (n,)."""
    with torch.no_grad():
        return model(x).argmax(1)  # type: ignore[no-any-return]


def standing(
    evaluator: Evaluator, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise
) -> Tensor:
    """Survivors: bool (n,), on the CPU."""
    return gather(evaluator, model, x, y, threat, rng).survives
