"""Random resizing and padding."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.errors import RobustCliError
from robustcli.preprocessors import PREPROCESSORS, Preprocessor
from robustcli.registry.types import Count, Positive


@PREPROCESSORS.register("resize_pad")
@dataclass(frozen=True, kw_only=True)
class ResizePad(Preprocessor):
    """Resize every image to a random size and place it at random on a black canvas.

    Size and place are drawn anew in every forward pass, for each image by itself, from the global generator of torch.
    The class of an image is that of the majority of `votes` passes. Pixels are copied (nearest neighbor), so gradients
    are exact for what was drawn; attacks that average them over many draws (autoattack with version: rand, eot_pgd) see
    through the randomness. With a canvas larger than 1 the network is built for the larger images.

    When to use: to evaluate such a defense; it adds hardly any robustness to attacks that know it.

    First setting: the defaults. Published for ImageNet: smallest: 1.037 and canvas: 1.107, which is 310 to 331 pixels
    of 299.

    Args:
        smallest: smallest size of the resized image, relative to the image.
        canvas: size of the canvas, relative to the image, and largest size of the resized image.
        votes: forward passes, the majority of which decides the class of an image.

    Reference: Xie et al., "Mitigating Adversarial Effects Through Randomization", ICLR 2018; broken by Athalye,
        Carlini and Wagner, ICML 2018.
    """

    smallest: Positive = 0.8
    canvas: Positive = 1.0
    votes: Count = 10

    def __post_init__(self) -> None:
        if self.smallest > self.canvas:
            raise RobustCliError(
                f"preprocessor resize_pad: smallest is {self.smallest:g}, above canvas, {self.canvas:g}"
            )

    def size(self, height: int, width: int) -> tuple[int, int]:
        return max(1, round(self.canvas * height)), max(1, round(self.canvas * width))

    def __call__(self, x: Tensor) -> Tensor:
        count, _, *sides = x.shape
        drawn = torch.rand(count, 3, device=x.device)
        scale, *places = drawn.unbind(1)
        factor = self.smallest + (self.canvas - self.smallest) * scale
        lines = [_source(*given, factor) for given in zip(sides, self.size(*sides), places, strict=True)]
        (rows, row_inside), (columns, column_inside) = lines
        image = torch.arange(count, device=x.device)[:, None, None]
        # Indices around the channels put these last.
        found = x[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        return found * (row_inside[:, None, :, None] & column_inside[:, None, None, :])


def _source(side: int, canvas: int, place: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Lines of the image that are copied to every line of the canvas, and the mask of those that get one: (n, canvas).

    Args:
        side: lines of the image.
        place: (n,) in [0, 1), position of the resized image on the canvas.
        factor: (n,) size of the resized image, relative to the image.
    """
    resized = (factor * side).round().clamp(1, canvas)
    first = (place * (canvas - resized + 1)).floor()
    line = torch.arange(canvas, device=place.device) - first[:, None]
    source = ((line + 0.5) * side / resized[:, None]).floor().long()
    return source.clamp(0, side - 1), (line >= 0) & (line < resized[:, None])
