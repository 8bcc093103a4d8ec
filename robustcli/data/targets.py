"""What is asked of a training image, and of its attack: its label, or class shares that leave others something."""

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
        reach_attack: whether attacks see them too; published ones raise the loss of the label itself.
        is_complete: whether every image has a label. Where some have -1 instead, all are asked for as class shares, and
            those of an image without a label are 0: a cross-entropy is 0 there.
    """

    smoothing: float = 0.0
    extra_smoothing: float = 0.0
    over: Literal["all", "others"] = "all"
    reach_attack: bool = False
    is_complete: bool = True

    def __call__(self, y: Tensor, is_extra: Tensor, classes: int) -> tuple[Tensor, Tensor | None]:
        """What attacks raise the loss of, and what the loss asks for where that is something else.

        The labels (n,) and class shares (n, k) in float32; the labels alone where nothing is smoothed at all; the
        shares alone where they reach the attack.

        Args:
            y: labels (n,), -1 for none.
            is_extra: bool (n,).
            classes: k.
        """
        is_smoothed = self.smoothing or self.extra_smoothing
        if self.is_complete and not is_smoothed:
            return y, None
        has_label = (y >= 0)[:, None]
        label = F.one_hot(y.clamp_min(0), classes).float()
        given = y if self.is_complete else label * has_label
        if not is_smoothed:
            return given, None
        smoothed = self._smoothed(label, is_extra) * has_label
        return (smoothed, None) if self.reach_attack else (given, smoothed)

    def _smoothed(self, label: Tensor, is_extra: Tensor) -> Tensor:
        # Filled in and not copied to the device, which would wait for it.
        own = torch.full_like(label[:, :1], self.smoothing)
        s = own.masked_fill(is_extra[:, None], self.extra_smoothing)
        classes = label.shape[1]
        if self.over == "all":
            return (1 - s) * label + s / classes
        return (1 - s) * label + s / (classes - 1) * (1 - label)
