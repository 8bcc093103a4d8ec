"""Labels of training images, as the attack and as the loss see them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Labels:
    """Labels of a batch, as the attack and as the loss see them.

    Both are labels (n,) or class shares (n, k), and one tensor unless labels are smoothed for the loss only.

    Args:
        attack: the attack raises the loss of these.
        loss: the weights lower the loss of these.
    """

    attack: Tensor
    loss: Tensor

    @classmethod
    def of(cls, y: Tensor) -> "Labels":
        """Return the same labels for attack and loss."""
        return cls(y, y)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Labels":
        """Return both with the same change."""
        attack = change(self.attack)
        return Labels(attack, attack if self.loss is self.attack else change(self.loss))


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Label smoothing, by the source of an image.

    Args:
        smoothing: s of the data set's own images.
        extra_smoothing: s of the extra images.
        over: "all": s / k on every class, the labeled one included; "others": s / (k - 1) on every other class.
        reach_attack: attacks use smoothed labels too; published attacks use the label itself.
        is_complete: every image has a label. If some have -1, all labels become class shares, and those of an image
            without a label are 0, so its cross-entropy is 0.
    """

    smoothing: float = 0.0
    extra_smoothing: float = 0.0
    over: Literal["all", "others"] = "all"
    reach_attack: bool = False
    is_complete: bool = True

    def __call__(self, y: Tensor, is_extra: Tensor, classes: int) -> Labels:
        """Return labels (n,), or float32 class shares (n, k) if labels are smoothed or missing.

        Args:
            y: labels (n,); -1 for no label.
            is_extra: mask of the extra images (n,).
            classes: k.
        """
        is_smoothed = self.smoothing or self.extra_smoothing
        if self.is_complete and not is_smoothed:
            return Labels.of(y)
        has_label = (y >= 0)[:, None]
        label = F.one_hot(y.clamp_min(0), classes).float()
        given = y if self.is_complete else label * has_label
        if not is_smoothed:
            return Labels.of(given)
        smoothed = self._smoothed(label, is_extra) * has_label
        return Labels.of(smoothed) if self.reach_attack else Labels(given, smoothed)

    def _smoothed(self, label: Tensor, is_extra: Tensor) -> Tensor:
        # Created on the device, because a copy to it would wait.
        own = torch.full_like(label[:, :1], self.smoothing)
        s = own.masked_fill(is_extra[:, None], self.extra_smoothing)
        classes = label.shape[1]
        if self.over == "all":
            return (1 - s) * label + s / classes
        return (1 - s) * label + s / (classes - 1) * (1 - label)
