"""Mean and standard deviation of the pixels of each channel."""

import torch
from torch import Tensor


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, of pixels in [0, 1]; constant channels get the deviation 1.

    Args:
        images: at least one image, (n, c, h, w), uint8 in 0..255 or float32 in [0, 1].
    """
    pairs = [_statistics(images[:, channel]) for channel in range(images.shape[1])]
    return tuple(mean for mean, _ in pairs), tuple(std if std > 0 else 1.0 for _, std in pairs)


def _statistics(values: Tensor) -> tuple[float, float]:
    if values.dtype != torch.uint8:
        values = values.double()
        return values.mean().item(), values.std(correction=0).item()
    # Counting levels is exact and needs no floating-point copy of the images.
    counts = torch.bincount(values.flatten(), minlength=256).double()
    level = torch.arange(256, dtype=torch.float64) / 255
    mean = (counts * level).sum() / counts.sum()
    variance = (counts * (level - mean) ** 2).sum() / counts.sum()
    return mean.item(), variance.sqrt().item()
