"""Images as PNG: single ones as data URLs, and grids of clean image, difference and adversarial example."""

import base64
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robustcli.errors import RobustCliError
from robustcli.store.files import replacing
from robustcli.workflows.examples import Examples

_SIDE = 96
_GAP = 4


def pixels(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Convert (c, h, w) in [0, 1] to RGB bytes (h, w, 3); without three channels the first one is shown as gray."""
    shown = image if len(image) == 3 else np.repeat(image[:1], 3, axis=0)
    rounded: NDArray[np.uint8] = np.rint(255 * np.clip(shown, 0, 1)).astype(np.uint8).transpose(1, 2, 0)
    return rounded


def difference(x: NDArray[np.float32], x_adv: NDArray[np.float32]) -> NDArray[np.float32]:
    """Difference of two images, scaled so that the largest change of a pixel is black or white, and none is gray."""
    delta = x_adv - x
    scaled: NDArray[np.float32] = 0.5 + delta / (2 * max(float(np.abs(delta).max()), 1e-12))
    return scaled


def data_url(image: NDArray[np.float32]) -> str:
    """Encode (c, h, w) in [0, 1] as a PNG data URL."""
    buffer = BytesIO()
    Image.fromarray(pixels(image)).save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def save_grid(path: Path, examples: Examples) -> None:
    """Draw one row per example: clean image, difference, adversarial example.

    Raises:
        RobustCliError: there are no examples, or the file is not a .png.
    """
    if path.suffix.lower() != ".png":
        raise RobustCliError(f"{path}: found {path.suffix or 'no suffix'}; expected .png")
    if not len(examples.x):
        raise RobustCliError(f"{examples.key}: no image was broken, so there is nothing to draw")
    rows = [
        np.concatenate([_cell(part) for part in (x, difference(x, x_adv), x_adv)], axis=1)
        for x, x_adv in zip(examples.x, examples.x_adv, strict=True)
    ]
    canvas = np.concatenate(rows)[:-_GAP, :-_GAP]
    with replacing(path) as file:
        Image.fromarray(canvas).save(file, format="PNG")


def _cell(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Repeat pixels so that the shorter side has about 96 pixels, and add a white gap on the right and below."""
    shown = pixels(image)
    factor = max(1, _SIDE // min(shown.shape[:2]))
    return np.pad(shown.repeat(factor, 0).repeat(factor, 1), ((0, _GAP), (0, _GAP), (0, 0)), constant_values=255)
