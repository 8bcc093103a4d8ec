"""Corruptions of images: noise and color. Those that move or blur pixels are in corruption_blurs.py.

Every function takes float64 images (n, c, h, w) in [0, 1], the constants of one severity and one generator per image.
It returns images of the same shape, which may leave [0, 1]. The constants are those of CIFAR-10-C.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from robustcli.data import corruption_blurs as blurs
from robustcli.errors import RobustCliError

Images = NDArray[np.float64]
# Weights of red, green and blue in the luminance (ITU-R BT.601).
_GRAY = np.array([0.299, 0.587, 0.114])
Apply = Callable[[Images, Any, Sequence[Generator]], Images]


@dataclass(frozen=True)
class Kind:
    """One kind of corruption.

    Args:
        apply: function that corrupts images.
        severities: constants of severity 1 to 5.
    """

    apply: Apply
    severities: tuple[Any, Any, Any, Any, Any]


def _drawn(x: Images, generators: Sequence[Generator], draw: Callable[[Generator, Images], Images]) -> Images:
    return np.stack([draw(generator, image) for generator, image in zip(generators, x, strict=True)])


def gaussian_noise(x: Images, std: float, generators: Sequence[Generator]) -> Images:
    return x + _drawn(x, generators, lambda generator, image: generator.normal(0, std, image.shape))


def shot_noise(x: Images, photons: float, generators: Sequence[Generator]) -> Images:
    return _drawn(x, generators, lambda generator, image: generator.poisson(image * photons) / photons)


def impulse_noise(x: Images, share: float, generators: Sequence[Generator]) -> Images:
    """Set a share of the values to 1 and 0, half each, independently in every channel."""
    lots = _drawn(x, generators, lambda generator, image: generator.random(image.shape))
    return np.where(lots < share / 2, 0.0, np.where(lots < share, 1.0, x))


def speckle_noise(x: Images, std: float, generators: Sequence[Generator]) -> Images:
    return x + x * _drawn(x, generators, lambda generator, image: generator.normal(0, std, image.shape))


def contrast(x: Images, factor: float, generators: Sequence[Generator]) -> Images:
    mean: Images = x.mean((2, 3), keepdims=True)
    return (x - mean) * factor + mean


def brightness(x: Images, shift: float, generators: Sequence[Generator]) -> Images:
    """Add to the value in HSV; hue and saturation stay. Black turns gray."""
    value = x.max(1, keepdims=True)
    brighter: Images = np.clip(value + shift, 0, 1)
    return np.where(value > 0, x * brighter / np.where(value > 0, value, 1), brighter)


def saturate(x: Images, constants: tuple[float, float], generators: Sequence[Generator]) -> Images:
    """Map the saturation S in HSV to S a + b; a gray pixel, which has no hue, is treated as red."""
    if x.shape[1] != 3:
        raise RobustCliError(f"corruption saturate: takes color images (3 channels), not {x.shape[1]}")
    scale, shift = constants
    value = x.max(1, keepdims=True)
    spread = value - x.min(1, keepdims=True)
    saturation = spread / np.where(value > 0, value, 1)
    wanted = np.clip(saturation * scale + shift, 0, 1)
    # How far each channel is below the value at saturation 1.
    below = np.where(spread > 0, (value - x) / np.where(spread > 0, spread, 1), np.array([0, 1, 1.0])[:, None, None])
    changed: Images = value * (1 - wanted * below)
    return changed


def fog(x: Images, constants: tuple[float, float], generators: Sequence[Generator]) -> Images:
    """Add fractal noise and darken, so that the maximum of an image stays the same."""
    amount, decay = constants
    side = 1 << (max(x.shape[2:]) - 1).bit_length()
    clouds = np.stack([_plasma(side, decay, generator) for generator in generators])[:, None]
    brightest: Images = x.max((1, 2, 3), keepdims=True)
    return (x + amount * clouds[..., : x.shape[2], : x.shape[3]]) * brightest / (brightest + amount)


def snow(x: Images, constants: tuple[float, ...], generators: Sequence[Generator]) -> Images:
    """Whiten the image and add slanted flakes twice: as drawn and rotated by half a turn."""
    mean, std, zoom, least, radius, blur, mix = constants
    height, width = x.shape[2:]
    flakes = np.stack([generator.normal(mean, std, (1, height, width)) for generator in generators])
    flakes = blurs.enlarged(flakes, zoom)
    flakes = np.clip(np.where(flakes < least, 0, flakes), 0, 1)
    angles = [float(generator.uniform(-135, -45)) for generator in generators]
    flakes = blurs.streaked(flakes, int(radius), blur, angles)
    weights = _GRAY if x.shape[1] == 3 else np.full(x.shape[1], 1 / x.shape[1])
    gray: Images = np.einsum("nchw,c->nhw", x, weights)[:, None]
    return mix * x + (1 - mix) * np.maximum(x, 1.5 * gray + 0.5) + flakes + flakes[:, :, ::-1, ::-1]


def _plasma(side: int, decay: float, generator: Generator) -> Images:
    """Periodic fractal noise in [0, 1], (side, side), by the diamond-square algorithm."""
    cloud = np.zeros((side, side))
    step, size = side, 100.0

    def wobble(means: Images) -> Images:
        return means + size * generator.uniform(-size, size, means.shape)

    while step >= 2:
        half = step // 2
        corners = cloud[::step, ::step]
        down, right = np.roll(corners, -1, 0), np.roll(corners, -1, 1)
        centers = wobble((corners + down + right + np.roll(down, -1, 1)) / 4)
        cloud[half::step, half::step] = centers
        cloud[half::step, ::step] = wobble((corners + down + centers + np.roll(centers, 1, 1)) / 4)
        cloud[::step, half::step] = wobble((corners + right + centers + np.roll(centers, 1, 0)) / 4)
        step, size = half, size / decay
    cloud -= cloud.min()
    highest = cloud.max()
    # A single pixel has no noise.
    scaled: Images = cloud / highest if highest else cloud
    return scaled


def pixelate(x: Images, scale: float, generators: Sequence[Generator]) -> Images:
    """Shrink by area and enlarge again, both with a box filter."""
    height, width = x.shape[2:]
    small = (max(int(width * scale), 1), max(int(height * scale), 1))

    def coarse(channel: Images) -> Images:
        image = Image.fromarray(_bytes(channel))
        again = image.resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.BOX)
        return np.asarray(again) / 255

    return np.stack([[coarse(channel) for channel in image] for image in x])


def jpeg_compression(x: Images, quality: int, generators: Sequence[Generator]) -> Images:
    if x.shape[1] not in (1, 3):
        raise RobustCliError(f"corruption jpeg_compression: takes images of 1 or 3 channels, not of {x.shape[1]}")

    def compressed(image: Images) -> Images:
        pixels = _bytes(image.transpose(1, 2, 0))
        file = io.BytesIO()
        Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(file, "JPEG", quality=quality)
        again: Images = np.asarray(Image.open(file)) / 255
        return again.reshape(pixels.shape).transpose(2, 0, 1)

    return np.stack([compressed(image) for image in x])


def _bytes(x: Images) -> NDArray[np.uint8]:
    return np.round(x * 255).astype(np.uint8)


KINDS: Mapping[str, Kind] = {
    "gaussian_noise": Kind(gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": Kind(shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": Kind(impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": Kind(blurs.defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "glass_blur": Kind(blurs.glass_blur, ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))),
    "motion_blur": Kind(blurs.motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom_blur": Kind(blurs.zoom_blur, (5, 10, 15, 20, 25)),
    "snow": Kind(
        snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "fog": Kind(fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": Kind(brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": Kind(contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    # As fractions of the side length; 32 times these are the published constants.
    "elastic_transform": Kind(
        blurs.elastic_transform,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    "pixelate": Kind(pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": Kind(jpeg_compression, (80, 65, 58, 50, 40)),
    "speckle_noise": Kind(speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2)),
    "gaussian_blur": Kind(blurs.gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1)),
    "saturate": Kind(saturate, ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))),
}


def corrupted(x: Images, name: str, severity: int, generators: Sequence[Generator]) -> Images:
    """Return images (n, c, h, w) in [0, 1] after one corruption, clipped to [0, 1] and rounded down to steps of 1/255.

    Args:
        x: images.
        name: name of the corruption.
        severity: 1 to 5.
        generators: one per image.

    Raises:
        RobustCliError: the corruption does not support this number of channels.
    """
    kind = KINDS[name]
    # Evaluations allow for rounding below 0, which is no rate of photons.
    pixels = np.clip(x.astype(np.float64), 0, 1)
    changed = kind.apply(pixels, kind.severities[severity - 1], generators)
    # Truncated as in the published files, with a margin for rounding errors of unchanged pixels.
    return np.floor(np.clip(changed, 0, 1) * 255 + 1e-6) / 255
