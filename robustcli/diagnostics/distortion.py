"""Distortion: how far an attack moves inside the threat set."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.attacks import Attack
from robustcli.attacks.frank_wolfe import FrankWolfe
from robustcli.diagnostics import DIAGNOSTICS
from robustcli.diagnostics.measuring import in_batches, summary
from robustcli.evaluation.confirm import require_inside
from robustcli.registry.types import BatchSize
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel


@DIAGNOSTICS.register("distortion")
@dataclass(frozen=True, kw_only=True)
class Distortion:
    """Euclidean length of perturbations divided by the largest in the ball; in linf, 1 means eps in every pixel.

    For Frank-Wolfe, a value near 1 means that all steps point to the same corner, so one step would have been enough.
    The value falls when steps contradict each other; a sudden fall during training announces catastrophic overfitting.
    Perturbations of Frank-Wolfe are measured before clipping to [0, 1], those of other attacks after it.

    Args:
        attack: attack that is measured; Frank-Wolfe with 10 steps.

    Reference: Tsiligkaridis and Roberts, "Understanding and Increasing Efficiency of Frank-Wolfe Adversarial
        Training", CVPR 2022.
    """

    batch_size: BatchSize = 250
    attack: Attack = field(default_factory=FrankWolfe)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise
    ) -> dict[str, Any]:
        return summary(threat.distortion(self._perturbations(model, x, y, threat, rng.split("attack"))))

    def _perturbations(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise) -> Tensor:
        rows = torch.arange(len(x), device=x.device)

        def measure(part: slice) -> Tensor:
            # Before clipping to [0, 1]: black and white pixels are no sign of poor convergence.
            # A copy, in case an attack writes into its input.
            found = self.attack.perturbation(model, x[part].clone(), y[part], threat, rng.rows(rows[part])).detach()
            require_inside(type(self.attack).__name__, (x[part] + found).clamp(0, 1), x[part], threat)
            return found

        return in_batches(len(x), self.batch_size, measure)
