"""CutMix: replace a box of every image by that of another image, and mix the labels by area."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.data.mixers import MIXERS
from robustcli.data.mixers.partners import beta, mixed_labels, partners
from robustcli.data.mixers.squares import is_inside
from robustcli.data.targets import Labels
from robustcli.registry.types import NonNegative
from robustcli.threat.noise import Noise


@MIXERS.register("cutmix", mixes_labels=True, smoke={"alpha": 1.0})
@dataclass(frozen=True, kw_only=True)
class CutMix:
    """x <- x_j inside a box and x_i outside, q <- s q_i + (1 - s) q_j, with s the share of pixels outside.

    All images of a batch share one box. Its area is the share 1 - s with s ~ Beta(alpha, alpha), its ratio that of the
    image, its center uniform; it is cropped at the border, and s is recomputed. Images are mixed before they are
    attacked; the attack must maximize the cross-entropy with the mixed labels (`loss: ce`).

    Args:
        alpha: parameter of the distribution; 1, as published, is uniform. 0 turns mixing off.

    Reference: Yun et al., ICCV 2019, arXiv 1905.04899; with weight averaging, for adversarial training:
        Rebuffi et al., NeurIPS 2021, arXiv 2103.01946.
    """

    alpha: NonNegative = 1.0

    def __call__(self, x: Tensor, labels: Labels, classes: int, rng: Noise) -> tuple[Tensor, Labels]:
        if self.alpha == 0:
            return x, labels
        height, width = x.shape[-2:]
        side = (1 - beta(self.alpha, x, rng)).sqrt()
        center = rng.uniform(torch.empty(2, device=x.device, dtype=torch.float64))
        partner = partners(x, rng)
        rows = is_inside(center[0], (side * height).long(), height)
        columns = is_inside(center[1], (side * width).long(), width)
        is_box = rows[:, None] & columns
        # A sum of booleans is exact, so there is only one rounding.
        kept = 1 - is_box.sum(dtype=torch.float64) / (height * width)
        return torch.where(is_box, x[partner], x), mixed_labels(labels, partner, kept, classes, x.dtype)
