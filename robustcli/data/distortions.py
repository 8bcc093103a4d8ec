"""Random resized crops, rotations and color jitter, different for each image of a batch."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from robustcli.specs.settings import Augment

# Usual range of the ratio of the sides of a resized crop.
NARROWEST, WIDEST = 3 / 4, 4 / 3
# Weights of red, green and blue in gray (ITU-R BT.601).
_GRAY = (0.299, 0.587, 0.114)
# Random numbers per image: four for the crop, one for the rotation, three for the colors.
DRAWS = 8


def distorted(x: Tensor, settings: Augment, chance: Tensor, *, is_cropped: bool = False) -> Tensor:
    """Return images after resized crop, rotation and color jitter: uint8, or float in [0, 1].

    Args:
        chance: random numbers (n, DRAWS) in [0, 1), float32. Each distortion has fixed columns, so turning one off does
            not change the others.
        is_cropped: the crop is omitted.
    """
    pixels = x.float() / 255 if x.dtype == torch.uint8 else x
    if settings.resized_crop and not is_cropped:
        pixels = _cropped(pixels, settings.resized_crop, chance[:, :4])
    if settings.rotate:
        pixels = _rotated(pixels, math.radians(settings.rotate), chance[:, 4])
    if settings.jitter:
        pixels = _colored(pixels, settings.jitter, chance[:, 5:])
    return (255 * pixels).round().to(torch.uint8) if x.dtype == torch.uint8 else pixels


def _cropped(x: Tensor, smallest: float, chance: Tensor) -> Tensor:
    """Resize a random box to the whole image; its share of the area is at least `smallest`, its ratio 3/4 to 4/3.

    Sides are at most those of the image.
    """
    share = smallest + (1 - smallest) * chance[:, 0]
    ratio = NARROWEST * (WIDEST / NARROWEST) ** chance[:, 1]
    height, width = x.shape[2:]
    # The ratio is in pixels, the sides are shares of those of the image.
    wide = (share * ratio * height / width).sqrt().clamp(max=1)
    high = (share / ratio * width / height).sqrt().clamp(max=1)
    right, down = (1 - wide) * (2 * chance[:, 2] - 1), (1 - high) * (2 * chance[:, 3] - 1)
    none = torch.zeros_like(wide)
    # Bilinear without smoothing, because a crop is only enlarged; only its border may read outside the image.
    return _sampled(x, torch.stack([wide, none, right, none, high, down], 1), "border")


def _rotated(x: Tensor, largest: float, chance: Tensor) -> Tensor:
    """Rotate images around the center by random angles up to `largest`; pixels from outside the image are 0."""
    angle = largest * (2 * chance - 1)
    height, width = x.shape[2:]
    cos, sin, none = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return _sampled(x, torch.stack([cos, -sin * height / width, none, sin * width / height, cos, none], 1), "zeros")


def _sampled(x: Tensor, maps: Tensor, beyond: str) -> Tensor:
    """Sample images at affine maps (n, 6) of the position, with coordinates in [-1, 1] along each axis."""
    grid = F.affine_grid(maps.view(-1, 2, 3).to(x.dtype), list(x.shape), align_corners=False)
    return F.grid_sample(x.contiguous(), grid, mode="bilinear", padding_mode=beyond, align_corners=False)


def _colored(x: Tensor, largest: float, chance: Tensor) -> Tensor:
    """Scale brightness, contrast and saturation by random factors in 1 +- largest, and clip to [0, 1] after each."""
    factors = ((1 - largest) + 2 * largest * chance).clamp(min=0).to(x.dtype)
    brightness, contrast, saturation = (factor[:, None, None, None] for factor in factors.unbind(1))
    x = (brightness * x).clamp(0, 1)
    mean = _gray(x).mean((2, 3), keepdim=True)
    x = (mean + contrast * (x - mean)).clamp(0, 1)
    gray = _gray(x)
    return (gray + saturation * (x - gray)).clamp(0, 1)


def _gray(x: Tensor) -> Tensor:
    """Return gray images: (n, c, h, w) -> (n, 1, h, w); the mean of channels if there are not three."""
    if x.shape[1] != len(_GRAY):
        return x.mean(1, keepdim=True)
    # One by one, because copying a tensor of the weights to a GPU would wait.
    red, green, blue = _GRAY
    return red * x[:, :1] + green * x[:, 1:2] + blue * x[:, 2:]
