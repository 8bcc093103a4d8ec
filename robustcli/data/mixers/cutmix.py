"""CutMix: a box of every image is that of another one of its batch, and the labels share by area."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.data.mixers import MIXERS
from robustcli.data.mixers.partners import beta, mixed_labels, partners
from robustcli.data.targets import Labels
from robustcli.registry.types import NonNegative
from robustcli.threat.noise import Noise


@MIXERS.register("cutmix", mixes_labels=True, smoke={"alpha": 1.0})
@dataclass(frozen=True, kw_only=True)
class CutMix:
    """x <- x_j inside a box and x_i outside, q <- s q_i + (1 - s) q_j, with s the share of pixels outside.

    One box serves the batch. It asks for the share 1 - s of the area with s ~ Beta(alpha, alpha), has the
    image's proportions and a centre anywhere, and is cut at the border; s is then counted anew. Images are
    mixed before they are attacked; the attack has to raise the cross-entropy of the mixed labels (`loss: ce`).

    Args:
        alpha: of the distribution; 1, as published, is uniform. 0 is none.

    Reference: Yun et al., ICCV 2019, arXiv 1905.04899; with weight averaging, for adversarial training:
        Rebuffi et al., NeurIPS 2021, arXiv 2103.01946.
    """

    alpha: NonNegative = 1.0

    def __call__(self, x: Tensor, labels: Labels, classes: int, rng: Noise) -> tuple[Tensor, Labels]:
        if self.alpha == 0:
            return x, labels
        height, width = x.shape[-2:]
        side = (1 - beta(self.alpha, x, rng)).sqrt()
        centre = rng.uniform(torch.empty(2, device=x.device, dtype=torch.float64))
        partner = partners(x, rng)
        is_box = _is_inside(centre[0], side, height)[:, None] & _is_inside(centre[1], side, width)
        # A sum of booleans is exact, so there is one rounding.
        kept = 1 - is_box.sum(dtype=torch.float64) / (height * width)
        return torch.where(is_box, x[partner], x), mixed_labels(labels, partner, kept, classes, x.dtype)


def _is_inside(centre: Tensor, side: Tensor, length: int) -> Tensor:
    """Mask of the pixels of one axis that lie in the box, (length,). Centre and side are shares of the length."""
    pixels = (side * length).long()
    first = (centre * length).long() - pixels // 2
    pixel = torch.arange(length, device=centre.device)
    return (pixel >= first) & (pixel < first + pixels)
