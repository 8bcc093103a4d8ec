"""JPEG compression."""

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from robustcli.errors import RobustCliError
from robustcli.preprocessors import PREPROCESSORS, Preprocessor, straight_through
from robustcli.registry.types import Quality

_LEVELS = 255


@PREPROCESSORS.register("jpeg")
@dataclass(frozen=True, kw_only=True)
class Jpeg(Preprocessor):
    """Compress and decompress every image as JPEG, by Pillow.

    Pixels are rounded to 8 bits first. The backward pass is that of the identity, so attacks see through the
    compression. It runs on the CPU, also where the network runs on a GPU, and takes about 0.1 ms for an image of 32 by
    32 pixels.

    When to use: to evaluate such a defense; it adds hardly any robustness to attacks that know it.

    First setting: quality: 75, as published.

    Args:
        quality: quality of the compression, from 1 to 100; JPEG reaches its best at 95.
        subsampling: resolution of the colors relative to that of the brightness; 4:2:0 is half of it in both
            directions, which is usual. Gray images have none.

    Reference: Dziugaite, Ghahramani and Roy, arXiv 1608.00853; Guo et al., "Countering Adversarial Images using Input
        Transformations", ICLR 2018; broken by Athalye, Carlini and Wagner, ICML 2018.
    """

    quality: Quality = 75
    subsampling: Literal["4:4:4", "4:2:2", "4:2:0"] = "4:2:0"

    def __call__(self, x: Tensor) -> Tensor:
        return straight_through(x, self._compressed)

    def _compressed(self, x: Tensor) -> Tensor:
        if x.shape[1] not in (1, 3):
            raise RobustCliError(f"preprocessor jpeg: images of {x.shape[1]} channels; expected 1 or 3")
        if x.is_meta:
            return torch.empty_like(x)
        codes = (x.detach().float().clamp(0, 1) * _LEVELS).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        decoded = np.stack([self._one(image) for image in codes])
        return (torch.from_numpy(decoded).to(x.device).permute(0, 3, 1, 2).float() / _LEVELS).to(x.dtype)

    def _one(
        self, codes: np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]
    ) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
        """One image (h, w, c) after compression."""
        from PIL import Image

        buffer = io.BytesIO()
        image = Image.fromarray(codes[:, :, 0] if codes.shape[2] == 1 else codes)
        image.save(buffer, "JPEG", quality=self.quality, subsampling=self.subsampling)
        with Image.open(buffer) as found:
            return np.asarray(found).reshape(codes.shape)
