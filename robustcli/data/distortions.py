"""Images turned, cut out and stretched, and their colours changed: each image of a batch by numbers of its own."""

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

# Of the sides of a crop that is stretched, as everybody has it.
_NARROWEST, _WIDEST = 3 / 4, 4 / 3
# What red, green and blue add to grey (ITU-R BT.601).
_GREY = (0.299, 0.587, 0.114)
# Numbers that an image takes: four of a crop, one of a turn, three of its colours.
DRAWS = 8


class DistortionSettings(Protocol):
    """How far training images are distorted; 0 is off.

    Args:
        resized_crop: smallest share of the area that is cut out and stretched to the whole image.
        rotate: largest angle, in degrees.
        jitter: largest relative change of brightness, contrast and saturation.
    """

    @property
    def resized_crop(self) -> float: ...

    @property
    def rotate(self) -> float: ...

    @property
    def jitter(self) -> float: ...


def distorted(x: Tensor, settings: DistortionSettings, chance: Tensor) -> Tensor:
    """Cropped and stretched, then turned, then coloured; uint8 in whole levels, or float in [0, 1].

    Args:
        chance: (n, DRAWS) in [0, 1), float32: all are looked at whatever is on, so that switching one distortion
            off leaves the others as they were.
    """
    pixels = x.float() / 255 if x.dtype == torch.uint8 else x
    if settings.resized_crop:
        pixels = _cropped(pixels, settings.resized_crop, chance[:, :4])
    if settings.rotate:
        pixels = _turned(pixels, math.radians(settings.rotate), chance[:, 4])
    if settings.jitter:
        pixels = _coloured(pixels, settings.jitter, chance[:, 5:])
    return (255 * pixels).round().to(torch.uint8) if x.dtype == torch.uint8 else pixels


def _cropped(x: Tensor, smallest: float, chance: Tensor) -> Tensor:
    """A box of a share of the area between `smallest` and 1, of a ratio between 3/4 and 4/3, anywhere in the image.

    A side that would be longer than the image's is cut to it.
    """
    share = smallest + (1 - smallest) * chance[:, 0]
    ratio = _NARROWEST * (_WIDEST / _NARROWEST) ** chance[:, 1]
    height, width = x.shape[2:]
    # Ratio of the sides in pixels; sides as shares of the image's.
    wide = (share * ratio * height / width).sqrt().clamp(max=1)
    high = (share / ratio * width / height).sqrt().clamp(max=1)
    right, down = (1 - wide) * (2 * chance[:, 2] - 1), (1 - high) * (2 * chance[:, 3] - 1)
    none = torch.zeros_like(wide)
    # Bilinear without smoothing: a crop is never made smaller, only its edge may ask beyond the image.
    return _sampled(x, torch.stack([wide, none, right, none, high, down], 1), "border")


def _turned(x: Tensor, largest: float, chance: Tensor) -> Tensor:
    """About the centre, by an angle between -largest and largest; what comes from beyond the image is 0."""
    angle = largest * (2 * chance - 1)
    height, width = x.shape[2:]
    cos, sin, none = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return _sampled(x, torch.stack([cos, -sin * height / width, none, sin * width / height, cos, none], 1), "zeros")


def _sampled(x: Tensor, maps: Tensor, beyond: str) -> Tensor:
    """Where each pixel comes from is an affine map (n, 6) of where it is, both in [-1, 1] along each axis."""
    grid = F.affine_grid(maps.view(-1, 2, 3).to(x.dtype), list(x.shape), align_corners=False)
    return F.grid_sample(x.contiguous(), grid, mode="bilinear", padding_mode=beyond, align_corners=False)


def _coloured(x: Tensor, largest: float, chance: Tensor) -> Tensor:
    """Brightness, contrast and saturation times a factor between 1 - largest and 1 + largest, cut at the box each."""
    factors = ((1 - largest) + 2 * largest * chance).clamp(min=0).to(x.dtype)
    brightness, contrast, saturation = (factor[:, None, None, None] for factor in factors.unbind(1))
    x = (brightness * x).clamp(0, 1)
    mean = _grey(x).mean((2, 3), keepdim=True)
    x = (mean + contrast * (x - mean)).clamp(0, 1)
    grey = _grey(x)
    return (grey + saturation * (x - grey)).clamp(0, 1)


def _grey(x: Tensor) -> Tensor:
    """(n, c, h, w) -> (n, 1, h, w); without three channels they all count alike."""
    if x.shape[1] != len(_GREY):
        return x.mean(1, keepdim=True)
    # One by one: a tensor of the three would be waited for on its way to a GPU.
    red, green, blue = _GREY
    return red * x[:, :1] + green * x[:, 1:2] + blue * x[:, 2:]
