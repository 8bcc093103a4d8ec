"""f_w: the networks. Each file holds one family; a member maps pixels in [0, 1] to logits.

A builder takes the shape of the data first and its settings as keyword-only parameters. It does not
normalise: `build` puts the normalisation in front, so that every attack sees the function of raw pixels.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from robustcli.registry.registry import Registry

ARCHITECTURES = Registry("architectures")


@dataclass(frozen=True)
class ImageShape:
    """What a network needs to know of the data.

    Args:
        channels, height, width: of one image.
        classes: number of logits.
    """

    channels: int
    height: int
    width: int
    classes: int

    @property
    def words(self) -> str:
        """For messages."""
        return f"{self.channels}x{self.height}x{self.width} images of {self.classes} classes"


class Builder(Protocol):
    """A registered architecture: (shape, *, settings) -> body, which maps normalised images to logits."""

    def __call__(self, shape: ImageShape, /, **settings: Any) -> nn.Module: ...


class Body(Protocol):
    """A network inside another one, built for the same images: a torch module, normalised images -> logits."""

    def __call__(self, x: Tensor, /) -> Tensor: ...


@runtime_checkable
class Searched(Protocol):
    """A body that stands for many networks, and says which of them it prefers."""

    def derived(self) -> dict[str, Any]:
        """That network, as a spec names it: plain values, the name among them."""
        ...


class Normalize(nn.Module):
    """(x - mean) / std per channel; mean 0 and std 1 leave x as it is."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Standardize(nn.Module):
    """(x - mean) / std of each image by itself, over all its pixels and channels; gradients flow through both.

    The deviation is at least 1 / sqrt(numbers in the image) levels of 255, as in TensorFlow; a flat image becomes 0.
    """

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2, 3), keepdim=True)
        # Cut before the root, whose slope at 0 is infinite.
        variance = x.var((1, 2, 3), correction=0, keepdim=True).clamp_min(1 / (255**2 * x[0].numel()))
        return (x - mean) / variance.sqrt()


def first_layer(kind: str, mean: tuple[float, ...], std: tuple[float, ...]) -> Normalize | Standardize:
    """What `normalize:` names: "dataset" (mean and std per channel), "none" or "per_image"."""
    if kind == "per_image":
        return Standardize()
    return Normalize((0.0,) * len(mean), (1.0,) * len(std)) if kind == "none" else Normalize(mean, std)


class Network(nn.Module):
    """Normalisation first, then the body: pixels in [0, 1] (n, c, h, w) -> logits (n, k)."""

    def __init__(self, normalize: Normalize | Standardize, body: nn.Module) -> None:
        super().__init__()
        self.normalize = normalize
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(self.normalize(x))
        return logits
