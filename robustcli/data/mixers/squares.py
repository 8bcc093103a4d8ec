"""Set squares of images to 0, for the mixer and the augmentation cutout."""

import torch
from torch import Tensor


def cut_out(x: Tensor, places: Tensor, side: int) -> Tensor:
    """Set a square of each image (n, c, h, w) to 0, cropped at the border; uint8 or float, on any device.

    Args:
        places: positions of the centers as shares of height and width, in [0, 1): (n, 2).
        side: side of the square, in pixels; the center of an even one is the pixel below and right of its middle.
    """
    rows = _is_cut(places[:, 0], x.shape[-2], side)
    columns = _is_cut(places[:, 1], x.shape[-1], side)
    # A product in the type of x, because masked_fill takes many times as long on a CPU.
    return x * (~(rows[:, :, None] & columns[:, None, :]))[:, None].to(x.dtype)


def _is_cut(place: Tensor, length: int, side: int) -> Tensor:
    """Mask of the pixels along one axis in the square: (n,) -> bool (n, length)."""
    # A float32 below 1 times an integer never rounds up to that integer.
    first = (place[:, None] * length).long() - side // 2
    pixel = torch.arange(length, device=place.device)
    return (pixel >= first) & (pixel < first + side)
