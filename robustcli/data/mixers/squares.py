"""Boxes of images: their pixels, and squares set to 0, for mixers and for the augmentation cutout."""

import torch
from torch import Tensor


def cut_out(x: Tensor, places: Tensor, side: int) -> Tensor:
    """Set a square of each image (n, c, h, w) to 0, cropped at the border; uint8 or float, on any device.

    Args:
        places: positions of the centers as shares of height and width, in [0, 1): (n, 2).
        side: side of the square, in pixels; the center of an even one is the pixel below and right of its middle.
    """
    rows = is_inside(places[:, :1], side, x.shape[-2])
    columns = is_inside(places[:, 1:], side, x.shape[-1])
    # A product in the type of x, because masked_fill takes many times as long on a CPU.
    return x * (~(rows[:, :, None] & columns[:, None, :]))[:, None].to(x.dtype)


def is_inside(center: Tensor, side: Tensor | int, length: int) -> Tensor:
    """Mask of the pixels along one axis in boxes, cropped at the border: (..., 1) -> bool (..., length).

    Args:
        center: positions of the centers as shares of the length, in [0, 1).
        side: side of the boxes, in pixels.
        length: pixels along the axis.
    """
    # A float32 below 1 times an integer never rounds up to that integer.
    first = (center * length).long() - side // 2
    pixel = torch.arange(length, device=center.device)
    return (pixel >= first) & (pixel < first + side)
