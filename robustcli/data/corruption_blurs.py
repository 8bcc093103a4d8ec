"""Corruptions that blur images or move their pixels; corruption_kinds.py describes their arguments."""

from collections.abc import Sequence

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage

Images = NDArray[np.float64]
# Half the grid on which a disk is drawn.
_DISK_REACH = 8


def gaussian_blur(x: Images, std: float, generators: Sequence[Generator]) -> Images:
    blurred: Images = ndimage.gaussian_filter(x, (0, 0, std, std), mode="nearest", truncate=4)
    return blurred


def defocus_blur(x: Images, constants: tuple[float, float], generators: Sequence[Generator]) -> Images:
    """Convolve with a disk with a smooth border."""
    radius, softness = constants
    offsets = np.arange(-_DISK_REACH, _DISK_REACH + 1)
    disk = (offsets[:, None] ** 2 + offsets[None] ** 2 <= radius**2).astype(np.float64)
    bell = np.exp(-(np.arange(-1, 2) ** 2) / (2 * softness**2))
    soft = ndimage.convolve(disk, np.outer(bell, bell), mode="constant")
    blurred: Images = ndimage.correlate(x, (soft / soft.sum())[None, None], mode="mirror")
    return blurred


def glass_blur(x: Images, constants: tuple[float, int, int], generators: Sequence[Generator]) -> Images:
    """Blur, swap every pixel with a nearby one, from the last to the first, and blur again."""
    std, shift, rounds = constants
    y = gaussian_blur(x, std, generators)
    height, width = x.shape[2:]
    rows = np.arange(len(x))
    for _ in range(rounds):
        moves = np.stack([generator.integers(-shift, shift, (height, width, 2)) for generator in generators])
        for i in range(height - shift, shift, -1):
            for j in range(width - shift, shift, -1):
                # All images at once; each has its own offsets.
                near = (rows, slice(None), i + moves[:, i - 1, j - 1, 0], j + moves[:, i - 1, j - 1, 1])
                here = y[:, :, i, j].copy()
                y[:, :, i, j] = y[near]
                y[near] = here
    return gaussian_blur(y, std, generators)


def motion_blur(x: Images, constants: tuple[int, float], generators: Sequence[Generator]) -> Images:
    """Blur along a direction within 45 degrees of the horizontal."""
    radius, std = constants
    return streaked(x, radius, std, [float(generator.uniform(-45, 45)) for generator in generators])


def streaked(x: Images, radius: int, std: float, degrees: Sequence[float]) -> Images:
    """Average each pixel with those behind it on a ray: half a Gaussian, cut after 2 radius + 1 pixels.

    Args:
        x: images (n, c, h, w).
        radius, std: in pixels.
        degrees: direction of the ray for each image: 0 is to the right, 90 is down.
    """
    lengths = np.arange(2 * radius + 1)
    weights = np.exp(-(lengths**2) / (2 * std**2))
    weights /= weights.sum()
    height, width = x.shape[2:]
    streaks = np.zeros_like(x)
    for image, streak, angle in zip(x, streaks, np.deg2rad(degrees), strict=True):
        # Nearest pixel; outside the image, the border pixel is repeated.
        down = np.rint(lengths * np.sin(angle)).astype(int)
        right = np.rint(lengths * np.cos(angle)).astype(int)
        for weight, i, j in zip(weights, down, right, strict=True):
            rows, columns = (np.clip(np.arange(n) + by, 0, n - 1) for n, by in ((height, i), (width, j)))
            streak += weight * image[:, rows[:, None], columns]
    return streaks


def zoom_blur(x: Images, percent: int, generators: Sequence[Generator]) -> Images:
    """Mean of an image and of copies enlarged around the center by 0, 1, ... percent."""
    total = x.copy()
    for more in range(percent + 1):
        total += enlarged(x, 1 + more / 100)
    return total / (percent + 2)


def enlarged(x: Images, factor: float) -> Images:
    """Enlarge the images around their center, with linear interpolation, and crop to the same size."""
    height, width = x.shape[2:]
    center = np.array([(height - 1) / 2, (width - 1) / 2])
    grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"))
    places = center[:, None, None] + (grid - center[:, None, None]) / factor
    return np.stack([[_looked_up(channel, places) for channel in image] for image in x])


def elastic_transform(x: Images, constants: tuple[float, float, float], generators: Sequence[Generator]) -> Images:
    """Apply a random affine map, given by three points, and then a smooth random displacement of every pixel.

    The constants are fractions of the shorter side: amplitude and smoothness of the displacement, and how far the three
    points move.
    """
    return np.stack([_bent(image, constants, generator) for image, generator in zip(x, generators, strict=True)])


def _bent(image: Images, constants: tuple[float, float, float], generator: Generator) -> Images:
    height, width = image.shape[1:]
    side = min(height, width)
    strength, smoothness, reach = (side * constant for constant in constants)
    third = side // 3
    center = np.array([height // 2, width // 2])
    # Three corners of a square around the center.
    before = center + third * np.array([[1, 1], [-1, 1], [-1, -1]])
    after = before + generator.uniform(-reach, reach, (3, 2))
    # The affine map from output positions to input positions: after -> before.
    columns = np.hstack([after, np.ones((3, 1))])
    affine = np.linalg.solve(columns, before.astype(np.float64)) if third else np.eye(3, 2)
    grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij")).astype(np.float64)
    places = np.einsum("kij,kl->lij", np.concatenate([grid, np.ones((1, height, width))]), affine)
    moved = np.stack([_looked_up(channel, places, mode="mirror") for channel in image])
    field = generator.uniform(-1, 1, (2, height, width))
    if strength:
        grid += strength * ndimage.gaussian_filter(field, (0, smoothness, smoothness), mode="reflect", truncate=3)
    return np.stack([_looked_up(channel, grid, mode="reflect") for channel in moved])


def _looked_up(channel: Images, places: Images, mode: str = "nearest") -> Images:
    """Values at positions (2, h, w), with linear interpolation."""
    found: Images = ndimage.map_coordinates(channel, places, order=1, mode=mode)
    return found
