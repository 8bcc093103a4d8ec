"""Cutout: set a square of every image to 0 and keep the labels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.data.mixers import MIXERS
from robustcli.data.mixers.squares import cut_out
from robustcli.data.targets import Labels
from robustcli.registry.types import Size
from robustcli.threat.noise import Noise


@MIXERS.register("cutout", mixes_alone=True, smoke={"side": 3})
@dataclass(frozen=True, kw_only=True)
class Cutout:
    """x <- 0 inside a square, x outside; every image has its own square and keeps its label.

    The center is uniform, and the square is cropped at the border. `data.augment.cutout` does the same before other
    mixers.

    Args:
        side: side of the square, in pixels; 16 as published for CIFAR-10, 14 in the study of robust overfitting by Rice
            et al. 0 turns it off.


    Reference: DeVries and Taylor, 2017, arXiv 1708.04552; in adversarial training: Rice, Wong and Kolter, ICML 2020;
        with weight averaging Rebuffi et al., NeurIPS 2021, arXiv 2103.01946.
    """

    side: Size = 16

    def __call__(self, x: Tensor, labels: Labels, classes: int, rng: Noise) -> tuple[Tensor, Labels]:
        if self.side == 0:
            return x, labels
        places = rng.uniform(torch.empty((len(x), 2), device=x.device, dtype=torch.float32))
        return cut_out(x, places, self.side), labels
