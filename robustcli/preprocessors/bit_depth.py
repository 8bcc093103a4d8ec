"""Fewer levels of brightness."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.preprocessors import PREPROCESSORS, Preprocessor, straight_through
from robustcli.registry.types import Bits


@PREPROCESSORS.register("bit_depth")
@dataclass(frozen=True, kw_only=True)
class BitDepth(Preprocessor):
    """Round every pixel to 2^bits levels.

    The backward pass is that of the identity, so attacks see through the rounding.

    When to use: to evaluate such a defense; it adds hardly any robustness to attacks that know it.

    First setting: bits: 3, as published.

    Args:
        bits: bits per pixel and channel; 1 leaves 2 levels, 8 those of usual image files.

    Reference: Xu, Evans and Qi, NDSS 2018 (feature squeezing); Guo et al., "Countering Adversarial Images using Input
        Transformations", ICLR 2018; broken by Athalye, Carlini and Wagner, ICML 2018.
    """

    bits: Bits = 3

    def __call__(self, x: Tensor) -> Tensor:
        highest = 2**self.bits - 1
        return straight_through(x, lambda pixels: torch.round(pixels * highest) / highest)
