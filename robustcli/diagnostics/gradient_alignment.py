"""Whether the gradient turns inside the ball."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.diagnostics import DIAGNOSTICS
from robustcli.diagnostics.measuring import gradients_of, summary
from robustcli.fields import Count
from robustcli.noise import IndexedNoise
from robustcli.threat import ThreatModel


@DIAGNOSTICS.register("gradient_alignment")
@dataclass(frozen=True, kw_only=True)
class GradientAlignment:
    """Cosine between the gradients of the cross-entropy at an image and at random points of its threat set.

    Near 1 the loss is linear in the ball and one step finds its maximum; after catastrophic overfitting it is near 0.
    Pairs of which one gradient is zero have no cosine; they are counted and left out.

    Args:
        points: random points for each image.
        batch_size: images per gradient; changes memory and speed alone.

    Reference: Andriushchenko and Flammarion, "Understanding and Improving Fast Adversarial Training", NeurIPS 2020.
    """

    points: Count = 1
    batch_size: Count = 250

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise
    ) -> dict[str, Any]:
        at_image = gradients_of(model, x, y, self.batch_size)
        cosines = []
        for number in range(self.points):
            beside = threat.sample(x, rng.split(f"point {number}"))
            cosines.append(_cosines(at_image, gradients_of(model, beside, y, self.batch_size)))
        found = torch.cat(cosines)
        has_both = torch.isfinite(found)
        return {"pairs": len(found), "zero_gradients": int((~has_both).sum()), "cosine": summary(found[has_both])}


def _cosines(one: Tensor, other: Tensor) -> Tensor:
    """Of each pair; not finite where one is zero. In double precision, where squares of small numbers do not vanish."""
    one, other = one.flatten(1).double(), other.flatten(1).double()
    cosines: Tensor = (one * other).sum(1) / (one.norm(dim=1) * other.norm(dim=1))
    return cosines
