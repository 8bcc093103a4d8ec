"""Augmentation of whole batches of training images, on their device."""

import torch
from torch import Tensor

from robustcli.data.distortions import DRAWS, distorted
from robustcli.data.mixers.squares import cut_out
from robustcli.errors import RobustCliError
from robustcli.specs.settings import Augment
from robustcli.threat.noise import Noise


def augment(x: Tensor, settings: Augment, rng: Noise, *, is_cropped: bool = False) -> Tensor:
    """Return images (uint8 or float) after distortions, crop, flip and cutout, with random numbers per image.

    Every image draws five numbers from `rng` for crop, flip and cutout, even if some are off, so turning one off does
    not change the others. Distortions draw their numbers afterwards. If everything is off, nothing is drawn and x
    itself is returned.

    Args:
        is_cropped: the resized crop was cut when the images were decoded.
    """
    is_resized = bool(settings.resized_crop) and not is_cropped
    is_distorted = bool(is_resized or settings.rotate or settings.jitter)
    if not (settings.crop or settings.flip or settings.cutout or is_distorted):
        return x
    n = len(x)
    chance = rng.uniform(torch.empty((n, 5), device=x.device, dtype=torch.float32))
    if is_distorted:
        luck = rng.uniform(torch.empty((n, DRAWS), device=x.device, dtype=torch.float32))
        x = distorted(x, settings, luck, is_cropped=is_cropped)
    if settings.crop:
        x = _crop_and_flip(x, settings, chance[:, :3])
    elif settings.flip:
        # Much cheaper than a gather, which needs the place of every source pixel.
        x = torch.where(chance[:, 2, None, None, None] < 0.5, x.flip(3), x)
    if settings.cutout:
        x = cut_out(x, chance[:, 3:], settings.cutout)
    return x


def require_room(settings: Augment, height: int, width: int) -> None:
    """Check that the padding of crops can be made from images of this size.

    Raises:
        RobustCliError: the padding is mirrored and as large as the image.
    """
    if settings.pad_mode == "reflect" and settings.crop >= min(height, width):
        raise RobustCliError(
            f"data.augment.crop: {settings.crop} pixels of padding cannot be mirrored in images of {height} x {width}; "
            f"use at most {min(height, width) - 1} with pad_mode 'reflect'"
        )


def _crop_and_flip(x: Tensor, settings: Augment, chance: Tensor) -> Tensor:
    """Crop and flip with one gather from the row and the column of each source pixel."""
    n, _, height, width = x.shape
    pad = settings.crop
    row = torch.arange(height, device=x.device).expand(n, height)
    column = torch.arange(width, device=x.device).expand(n, width)
    if settings.flip:
        column = torch.where(chance[:, 2:3] < 0.5, width - 1 - column, column)
    row = row + _whole(chance[:, 0:1], 2 * pad + 1) - pad
    column = column + _whole(chance[:, 1:2], 2 * pad + 1) - pad
    if settings.pad_mode == "reflect":
        require_room(settings, height, width)
        row, column = _reflected(row, height), _reflected(column, width)
        source = row[:, :, None] * width + column[:, None, :]
        return _gathered(x, source)
    is_row = (row >= 0) & (row < height)
    is_column = (column >= 0) & (column < width)
    source = row.clamp(0, height - 1)[:, :, None] * width + column.clamp(0, width - 1)[:, None, :]
    is_kept = (is_row[:, :, None] & is_column[:, None, :])[:, None]
    # A factor in the type of x, because masked_fill is many times slower on a CPU.
    return _gathered(x, source).mul_(is_kept.to(x.dtype))


def _gathered(x: Tensor, source: Tensor) -> Tensor:
    """Return the pixels of x at `source` (n, h, w), which numbers the pixels of a channel."""
    flat = x.flatten(2)
    return flat.gather(2, source.flatten(1)[:, None].expand_as(flat)).view(x.shape)


def _whole(chance: Tensor, count: int) -> Tensor:
    """Return integers below count. A float32 below 1 times an integer never rounds up to that integer."""
    return (chance * count).long()


def _reflected(position: Tensor, length: int) -> Tensor:
    return (length - 1) - ((length - 1) - position.abs()).abs()
