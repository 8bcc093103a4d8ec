"""Operations on the edges of cells: separable and dilated convolutions, pools and the identity."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.architectures.layers import Layers


def projected(inputs: int, outputs: int, layers: Layers, stride: Literal[1, 2] = 1) -> nn.Module:
    """Return activation, 1x1 convolution and norm; with stride 2 it reads all pixels, or pools before."""
    if stride == 2 and layers.downsample == "strided":
        return Halved(inputs, outputs, layers)
    return nn.Sequential(
        layers.nonlinearity(), layers.convolution(inputs, outputs, 1, stride), layers.normalization(outputs)
    )


class Halved(nn.Module):
    """Two 1x1 convolutions of stride 2, concatenated: (n, c, h, w) -> (n, outputs, ceil(h / 2), ceil(w / 2)).

    The second one is shifted by one pixel along both axes. On odd sides, which the published form does not have, it
    reads a zero at the end.
    """

    def __init__(self, inputs: int, outputs: int, layers: Layers) -> None:
        super().__init__()
        self.activation = layers.nonlinearity()
        self.here = nn.Conv2d(inputs, outputs // 2, 1, 2, bias=False)
        self.beside = nn.Conv2d(inputs, outputs - outputs // 2, 1, 2, bias=False)
        self.norm = layers.normalization(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(x)
        out: Tensor = self.norm(torch.cat([self.here(x), self.beside(F.pad(x, (-1, 1, -1, 1)))], 1))
        return out


def _depthwise(channels: int, kernel: int, stride: int, dilation: int, layers: Layers) -> list[nn.Module]:
    return [
        layers.nonlinearity(),
        layers.convolution(channels, channels, kernel, stride, channels, dilation=dilation),
        layers.convolution(channels, channels, 1),
        layers.normalization(channels),
    ]


def _separable(kernel: int) -> "Operation":
    """Return an operation: twice a depthwise and a pointwise convolution; the first pair has the stride."""
    return lambda channels, stride, layers: nn.Sequential(
        *_depthwise(channels, kernel, stride, 1, layers), *_depthwise(channels, kernel, 1, 1, layers)
    )


def _dilated(kernel: int) -> "Operation":
    return lambda channels, stride, layers: nn.Sequential(*_depthwise(channels, kernel, stride, 2, layers))


def _max(channels: int, stride: int, layers: Layers) -> nn.Module:
    return nn.MaxPool2d(3, stride, 1)


def _average(channels: int, stride: int, layers: Layers) -> nn.Module:
    return nn.AvgPool2d(3, stride, 1, count_include_pad=False)


def _skip(channels: int, stride: int, layers: Layers) -> nn.Module:
    return nn.Identity() if stride == 1 else projected(channels, channels, layers, 2)


# (channels, stride, factory of layers) -> a layer that keeps the number of channels.
Operation = Callable[[int, int, Layers], nn.Module]

# In the order of the mixture weights of a search. "none" is not among them: unwanted edges are left out.
OPERATIONS: dict[str, Operation] = {
    "max": _max,
    "avg": _average,
    "skip": _skip,
    "sep3": _separable(3),
    "sep5": _separable(5),
    "dil3": _dilated(3),
    "dil5": _dilated(5),
}
POOLS = ("max", "avg")
