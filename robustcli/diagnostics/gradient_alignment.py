"""Alignment of gradients inside the ball."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.diagnostics import DIAGNOSTICS
from robustcli.diagnostics.measuring import cosines, gradients_of, summary
from robustcli.registry.types import BatchSize, Count
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel


@DIAGNOSTICS.register("gradient_alignment")
@dataclass(frozen=True, kw_only=True)
class GradientAlignment:
    """Cosine between the gradients of the cross-entropy at an image and at random points of its threat set.

    Near 1, the loss is almost linear in the ball and one step finds its maximum; after catastrophic overfitting the
    cosine is near 0. A pair with a zero gradient has no cosine: it is counted and left out of `cosine`, because a
    vanishing gradient is a bad sign. `mean_with_zeros_as_1` counts these pairs as 1, like the released code and the
    records of training.

    Args:
        points: random points per image.

    Reference: Andriushchenko and Flammarion, "Understanding and Improving Fast Adversarial Training", NeurIPS 2020.
    """

    points: Count = 1
    batch_size: BatchSize = 250

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise
    ) -> dict[str, Any]:
        at_image = gradients_of(model, x, y, self.batch_size)
        found = []
        for number in range(self.points):
            beside = threat.sample(x, rng.split(f"point {number}"))
            found.append(cosines(at_image, gradients_of(model, beside, y, self.batch_size)))
        pairs = torch.cat(found)
        has_both = torch.isfinite(pairs)
        return {
            "pairs": len(pairs),
            "zero_gradients": int((~has_both).sum()),
            "cosine": summary(pairs[has_both]),
            "mean_with_zeros_as_1": float(torch.where(has_both, pairs, 1).mean()),
        }
