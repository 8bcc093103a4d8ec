"""Decode image files into pixels."""

from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from robustcli.errors import RobustCliError

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


def decode(data: bytes, size: int, where: str) -> Pixels:
    """Decode a file into its central square: (3, size, size) uint8.

    The square is resampled to `size` bilinearly, smoothed when it shrinks.

    Args:
        data: contents of the file. Pillow's many small reads of a file would each release the interpreter lock.
        size: height and width of the result.
        where: name of the file, for messages.

    Raises:
        RobustCliError: it is not an image, or has more than 8 bits per channel.
    """
    try:
        with Image.open(BytesIO(data)) as file:
            if file.mode.startswith(("I", "F")) or _has_16_bits(file):
                raise RobustCliError(
                    f"{where}: has more than 8 bits per channel (mode {file.mode}), which converting would cut off; "
                    "expected 8-bit images"
                )
            image = file.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow shows the stream where there is no file name.
        reason = "its format is not known" if isinstance(error, UnidentifiedImageError) else str(error)
        raise RobustCliError(f"{where}: cannot be decoded as an image ({reason}); replace or delete it") from error
    if image.size != (size, size):
        width, height = image.size
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        square = (left, top, left + side, top + side)
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=square)
    return np.asarray(image).transpose(2, 0, 1)


def _has_16_bits(file: Image.Image) -> bool:
    """True for an image in a mode of 8 bits that has 16 in the file, as RGB of PNG, TIFF and PPM may."""
    tiles: tuple[Any, ...] = getattr(file, "tile", ())
    for tile in tiles:
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if any(isinstance(part, str) and ";16" in part for part in arguments):
            return True
        if tile[0].startswith("ppm") and isinstance(arguments[-1], int) and arguments[-1] > 255:
            return True
    return False
