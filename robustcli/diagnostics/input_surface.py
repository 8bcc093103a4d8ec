"""The loss around images, over a plane of perturbations."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.diagnostics import DIAGNOSTICS
from robustcli.diagnostics.measuring import gradients_of, logits_of
from robustcli.registry.types import Count, Positive
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel


@DIAGNOSTICS.register("input_surface", smoke={"half": 1})
@dataclass(frozen=True, kw_only=True)
class InputSurface:
    """Mean cross-entropy and accuracy at x + a u + b v: u is the gradient's way, v a random one.

    u is the threat's steepest step of length eps at x (in linf eps times the gradient's sign) and v a random sign for
    every pixel, as long as u in the threat's norm. a and b count these lengths, so the threat set reaches to 1 on
    either axis. Points are cut at the pixel box. A smooth loss rises along a; one that is flat there and rough
    elsewhere is what masked gradients look like.

    Args:
        half: points of the grid on each side of the image; 10 makes 21 x 21.
        reach: the last a and b.
        images: the first so many, over which the mean is taken.
        batch_size: images per forward; changes only memory and speed.

    Reference: Tramer et al., "Ensemble Adversarial Training: Attacks and Defenses", ICLR 2018, for the plane
        of the gradient and a random direction.
    """

    half: Count = 10
    reach: Positive = 2.0
    images: Count = 100
    batch_size: Count = 250

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
