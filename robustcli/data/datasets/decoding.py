"""Decode image files into pixels."""

import math
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from robustcli.data.distortions import NARROWEST, WIDEST
from robustcli.errors import RobustCliError

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels."""


def decode(
    data: bytes,
    size: int,
    where: str,
    *,
    chance: Sequence[float] | None = None,
    smallest: float = 1,
    draft: bool = False,
) -> Pixels:
    """Decode a part of an image: (3, size, size) uint8, by default its central square.

    The part is resized bilinearly, with smoothing when it shrinks.

    Args:
        data: contents of the file, because Pillow's many small reads would each release the interpreter lock.
        size: height and width of the result.
        where: name of the file, for messages.
        chance: four random numbers in [0, 1) for a random box instead of the central square.
        smallest: smallest share of the area of a random box.
        draft: JPEG may be decoded at 1/2, 1/4 or 1/8 of its size if that is at least the required size. This is faster
            and changes pixels.

    Raises:
        RobustCliError: it is not an image, or has more than 8 bits per channel.
    """
    try:
        with Image.open(BytesIO(data)) as file:
            if file.mode.startswith(("I", "F")) or _has_16_bits(file):
                raise RobustCliError(
                    f"{where}: has more than 8 bits per channel (mode {file.mode}), which would be lost; "
                    "expected 8-bit images"
                )
            width, height = file.size
            box = _central_square(width, height) if chance is None else _random_box(width, height, chance, smallest)
            if draft:
                needed = size / (box[2] - box[0]), size / (box[3] - box[1])
                file.draft("RGB", (math.ceil(width * needed[0]), math.ceil(height * needed[1])))
                across, down = file.size[0] / width, file.size[1] / height
                box = (box[0] * across, box[1] * down, box[2] * across, box[3] * down)
            # Converting would copy an image that is already RGB.
            image = file if file.mode == "RGB" else file.convert("RGB")
            image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow prints the stream if there is no file name.
        reason = "its format is not known" if isinstance(error, UnidentifiedImageError) else str(error)
        raise RobustCliError(f"{where}: cannot be decoded as an image ({reason}); replace or delete it") from error
    if image.size != (size, size) or box != (0, 0, size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(image).transpose(2, 0, 1)


def _central_square(width: int, height: int) -> Box:
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _random_box(width: int, height: int, chance: Sequence[float], smallest: float) -> Box:
    """Random box with a share of at least `smallest` of the area and a ratio of 3/4 to 4/3, inside the image."""
    share = smallest + (1 - smallest) * chance[0]
    ratio = NARROWEST * (WIDEST / NARROWEST) ** chance[1]
    wide = min(width, math.sqrt(share * ratio * width * height))
    high = min(height, math.sqrt(share / ratio * width * height))
    left, top = (width - wide) * chance[2], (height - high) * chance[3]
    return left, top, min(left + wide, width), min(top + high, height)


def _has_16_bits(file: Image.Image) -> bool:
    """Return True for an image in an 8-bit mode with 16 bits in the file, possible for RGB in PNG, TIFF and PPM."""
    tiles: tuple[Any, ...] = getattr(file, "tile", ())
    for tile in tiles:
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if any(isinstance(part, str) and ";16" in part for part in arguments):
            return True
        if tile[0].startswith("ppm") and isinstance(arguments[-1], int) and arguments[-1] > 255:
            return True
    return False
