"""Pools that halve the resolution by cropping the spectrum: FrequencyLowCut, and ASAP, which also windows it."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SpectralPool(nn.Module):
    """Keep the low half of the spectrum, without aliasing: (n, c, h, w) -> (n, c, ceil(h / 2), ceil(w / 2)).

    The spectrum is cropped to the frequencies -floor(m / 2) ... ceil(m / 2) - 1 of m outputs per axis, and the real
    part is taken. For sides divisible by 4 this is the published operator. For others the published slice differs: it
    gives 6 outputs for 13 pixels, where a strided convolution gives 7, and for 14 pixels it loses the mean. Constants
    are kept; outputs may leave the range of the input (ringing).

    Computed with one small matrix per axis instead of a transform, which works in every precision.

    Args:
        windowed: multiply the spectrum by the root of a Hamming window first, which removes the ringing (ASAP). Even
            sides then get one zero at the end, so that the window is symmetric about constants.
    """

    def __init__(self, *, windowed: bool) -> None:
        super().__init__()
        self.windowed = windowed

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if self.windowed:
            x = F.pad(x, (0, 1 - width % 2, 0, 1 - height % 2))
        rows = _kept_low_pass(x.shape[2], math.ceil(height / 2), self.windowed, x)
        columns = _kept_low_pass(x.shape[3], math.ceil(width / 2), self.windowed, x)
        # The real part of rows x columns^T, whose factors are complex.
        real, imaginary = (r @ x @ c.T for r, c in zip(rows, columns, strict=True))
        return real - imaginary


# Matrices by sides, kind, device and precision. A module variable, so that they are not copied or saved with a layer.
_KEPT: dict[tuple[int, int, bool, torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}
_MOST_KEPT = 64


def _kept_low_pass(side: int, kept: int, windowed: bool, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return `low_pass` on the device and in the precision of a tensor; computed once."""

    def new() -> tuple[Tensor, Tensor]:
        real, imaginary = low_pass(side, kept, windowed, like.device)
        return real.to(like.dtype), imaginary.to(like.dtype)

    # Do not cache for compilers, which fold the matrices themselves, or for tensors without values.
    if torch.compiler.is_compiling() or type(like) not in (Tensor, nn.Parameter) or like.is_meta:
        return new()
    key = (side, kept, windowed, like.device, like.dtype)
    if key not in _KEPT:
        if len(_KEPT) == _MOST_KEPT:
            _KEPT.clear()
        # Outside inference mode, so that later training steps can use matrices that an evaluation made.
        with torch.inference_mode(False):
            _KEPT[key] = new()
    return _KEPT[key]


def low_pass(side: int, kept: int, windowed: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the matrix (kept, side), real and imaginary part, that crops the spectrum of a signal to `kept` values."""
    frequencies = (torch.arange(kept, device=device) - kept // 2)[:, None, None]
    turns = torch.arange(kept, device=device)[:, None] / kept - torch.arange(side, device=device) / side
    angles = 2 * math.pi * frequencies * turns
    gains = torch.full((kept, 1, 1), 1 / side, device=device)
    if windowed:
        place = (frequencies + side // 2) / max(side - 1, 1)
        gains = gains * (0.54 - 0.46 * torch.cos(2 * math.pi * place)).sqrt()
    return (gains * angles.cos()).sum(0), (gains * angles.sin()).sum(0)


class Pooled(nn.Module):
    """A pool followed by a layer."""

    def __init__(self, pool: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        self.pool = pool
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(self.pool(x))
        return out
