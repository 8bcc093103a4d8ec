"""Mean and standard deviation of the pixels of each channel."""

from collections.abc import Sequence

import torch
from torch import Tensor


class LevelCounts:
    """Counts of the 256 levels of every channel; exact, and needs no floating-point copy of the images.

    Args:
        channels: number of channels.
    """

    def __init__(self, channels: int) -> None:
        self._counts = torch.zeros((channels, 256), dtype=torch.int64)

    def add(self, images: Tensor) -> None:
        """Count the pixels of images (n, c, h, w), uint8."""
        for channel, counts in enumerate(self._counts):
            counts += torch.bincount(images[:, channel].flatten(), minlength=256)

    def mean_and_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation of each channel; constant channels get the deviation 1."""
        level = torch.arange(256, dtype=torch.float64) / 255
        pairs = []
        for counts in self._counts.double():
            mean = (counts * level).sum() / counts.sum()
            variance = (counts * (level - mean) ** 2).sum() / counts.sum()
            pairs.append((mean.item(), variance.sqrt().item()))
        return _means_and_stds(pairs)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, of pixels in [0, 1]; constant channels get the deviation 1.

    Args:
        images: at least one image, (n, c, h, w), uint8 in 0..255 or float32 in [0, 1].
    """
    if images.dtype == torch.uint8:
        counts = LevelCounts(images.shape[1])
        counts.add(images)
        return counts.mean_and_std()
    channels = [images[:, channel].double() for channel in range(images.shape[1])]
    return _means_and_stds([(values.mean().item(), values.std(correction=0).item()) for values in channels])


def _means_and_stds(pairs: Sequence[tuple[float, float]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(mean for mean, _ in pairs), tuple(std if std > 0 else 1.0 for _, std in pairs)
