"""Whether the gradient turns inside the ball."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.diagnostics import DIAGNOSTICS
from robustcli.diagnostics.measuring import cosines, gradients_of, summary
from robustcli.registry.types import Count
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel


@DIAGNOSTICS.register("gradient_alignment")
@dataclass(frozen=True, kw_only=True)
class GradientAlignment:
    """Cosine between the gradients of the cross-entropy at an image and at random points of its threat set.

    Near 1 the loss is linear in the ball and one step finds its maximum; after catastrophic overfitting it is near 0.
    Pairs of which one gradient is zero have no cosine; they are counted and left out of `cosine`, because a gradient
    that vanishes is a bad sign and no alignment. `mean_with_zeros_as_1` is the mean over all pairs with 1 in their
    place, the convention of the released code and of the record of a training.

    Args:
        points: random points for each image.
        batch_size: images per gradient; changes only memory and speed.

    Reference: Andriushchenko and Flammarion, "Understanding and Improving Fast Adversarial Training", NeurIPS 2020.
    """

    points: Count = 1
    batch_size: Count = 250

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
