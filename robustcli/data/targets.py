"""What is asked of a training image: its label, or class shares that leave something to the other classes."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Label smoothing, by the source of an image.

    Args:
        smoothing: s of the data set's own images.
        extra_smoothing: s of images that were added to it.
        over: who gets s: "all" classes s / k each, the labelled one too, or the "others" s / (k - 1) each.
    """

    smoothing: float = 0.0
    extra_smoothing: float = 0.0
    over: Literal["all", "others"] = "all"

    def __call__(self, y: Tensor, is_extra: Tensor, classes: int) -> Tensor:
        """Class shares (n, k) in float32, or the labels (n,) themselves where nothing is smoothed at all.

        Args:
            y: labels (n,).
            is_extra: bool (n,).
            classes: k.
        """
        if not (self.smoothing or self.extra_smoothing):
            return y
        own, extra = torch.tensor([self.smoothing, self.extra_smoothing], device=y.device)
        s = torch.where(is_extra, extra, own)[:, None]
        label = F.one_hot(y, classes).float()
        if self.over == "all":
            return (1 - s) * label + s / classes
        return (1 - s) * label + s / (classes - 1) * (1 - label)
