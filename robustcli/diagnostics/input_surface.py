"""Loss surface around images, over a plane of perturbations."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.diagnostics import DIAGNOSTICS
from robustcli.diagnostics.measuring import gradients_of, logits_of
from robustcli.registry.types import BatchSize, Count, Positive
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel


@DIAGNOSTICS.register("input_surface", smoke={"half": 1})
@dataclass(frozen=True, kw_only=True)
class InputSurface:
    """Mean cross-entropy and accuracy at x + a u + b v, with u the steepest step and v a random direction.

    u is the steepest step of length eps at x (in linf, eps times the sign of the gradient). v has a random sign for
    every pixel and the same length as u in the norm of the threat model, so the threat set ends at a = 1 and b = 1.
    Points are clipped to [0, 1]. A smooth loss rises along a; a loss that is flat along a and rough elsewhere suggests
    gradient masking.

    Args:
        half: grid points on each side of the image; 10 makes 21 x 21.
        reach: largest a and b.
        images: number of images; the mean is over the first N.

    Reference: Tramer et al., "Ensemble Adversarial Training: Attacks and Defenses", ICLR 2018, for the plane
        of the gradient and a random direction.
    """

    half: Count = 10
    reach: Positive = 2.0
    images: Count = 100
    batch_size: BatchSize = 250

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise
    ) -> dict[str, Any]:
        x, y, rng = x[: self.images], y[: self.images], rng.rows(torch.arange(min(self.images, len(x))))
        uphill = threat.ascent(gradients_of(model, x, y, self.batch_size), x, threat.radius)
        aside = torch.where(rng.split("direction").uniform(x) < 0.5, -1.0, 1.0).to(x.dtype)
        aside = threat.radius * aside / threat.size(aside[:1])
        ticks = [self.reach * step / self.half for step in range(-self.half, self.half + 1)]
        loss, accuracy = [], []
        for a in ticks:
            rows = [self._at(model, (x + a * uphill + b * aside).clamp(0, 1), y) for b in ticks]
            loss.append([row[0] for row in rows])
            accuracy.append([row[1] for row in rows])
        return {"images": len(x), "surface": {"uphill": ticks, "aside": ticks, "loss": loss, "accuracy": accuracy}}

    def _at(self, model: nn.Module, points: Tensor, y: Tensor) -> tuple[float, float]:
        logits = logits_of(model, points, self.batch_size)
        losses = nn.functional.cross_entropy(logits, y, reduction="none")
        return float(losses.double().mean()), float((logits.argmax(1) == y).double().mean())
