"""Networks: f_w of the formula. Each file holds one family.

A builder takes the shape of the data first and its settings as keyword-only parameters. It returns a network for
normalized images; `Network` puts the normalization in front, so that attacks see a function of pixels in [0, 1].
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from robustcli.preprocessors import Preprocessor
from robustcli.registry.registry import Registry

ARCHITECTURES = Registry("architectures")


@dataclass(frozen=True)
class ImageShape:
    """Shape of the images and number of classes.

    Args:
        channels, height, width: size of one image.
        classes: number of logits.
    """

    channels: int
    height: int
    width: int
    classes: int

    @property
    def size(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self.channels, self.height, self.width

    @property
    def text(self) -> str:
        """Return the shape for a message."""
        return f"{self.channels}x{self.height}x{self.width} images of {self.classes} classes"


class Body(Protocol):
    """A network inside another one, built for the same images: a torch module that maps normalized images to logits."""

    def __call__(self, x: Tensor, /) -> Tensor: ...


class Searched(Protocol):
    """A network of a member that declares `searches`: it contains many networks and prefers one of them."""

    def derived(self) -> dict[str, Any]:
        """Return the preferred network as a part of a spec: its name and its settings, as plain values."""
        ...


class Normalize(nn.Module):
    """Normalize every channel: (x - mean) / std. Mean 0 and std 1 leave x unchanged."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Standardize(nn.Module):
    """Normalize every image by its own mean and standard deviation, over all pixels and channels.

    Gradients flow through both. The standard deviation is at least 1 / sqrt(values in the image) levels of 255, as in
    TensorFlow, so a flat image becomes 0.
    """

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2, 3), keepdim=True)
        # Clamp before the root, because its slope at 0 is infinite.
        variance = x.var((1, 2, 3), correction=0, keepdim=True).clamp_min(1 / (255**2 * x[0].numel()))
        return (x - mean) / variance.sqrt()


def first_layer(kind: str, mean: tuple[float, ...], std: tuple[float, ...]) -> Normalize | Standardize:
    """Return the layer for `normalize:`: "dataset" (mean and std per channel), "none" or "per_image"."""
    if kind == "per_image":
        return Standardize()
    return Normalize((0.0,) * len(mean), (1.0,) * len(std)) if kind == "none" else Normalize(mean, std)


class Network(nn.Module):
    """Normalization followed by a network: pixels in [0, 1] (n, c, h, w) -> logits (n, k).

    Args:
        preprocess: transformation of the pixels before the normalization; None is none.
    """

    def __init__(
        self, normalize: Normalize | Standardize, body: nn.Module, preprocess: Preprocessor | None = None
    ) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.normalize = normalize
        self.body = body

    def extra_repr(self) -> str:
        return "" if self.preprocess is None else f"preprocess={self.preprocess}"

    def prepared(self, x: Tensor) -> Tensor:
        """Images as the body takes them."""
        normalized: Tensor = self.normalize(x if self.preprocess is None else self.preprocess(x))
        return normalized

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(self.prepared(x))
        return logits


def votes_of(network: nn.Module) -> int:
    """Forward passes, the majority of which decides the class of an image: more than 1 for a random preprocessor."""
    if isinstance(network, Network) and network.preprocess is not None:
        return network.preprocess.votes
    return 1
