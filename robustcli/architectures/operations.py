"""What may stand on an edge of a cell: separable and dilated convolutions, pools, and the edge itself."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def projected(inputs: int, outputs: int, *, affine: bool) -> nn.Sequential:
    """A rectified 1x1 convolution with its norm."""
    return nn.Sequential(nn.ReLU(), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs, affine=affine))


class Halved(nn.Module):
    """(n, c, h, w) -> (n, outputs, ceil(h / 2), ceil(w / 2)): two 1x1 convolutions of stride 2, side by side.

    The second reads what lies one pixel further along both axes, so that no pixel of an even side is lost. On
    odd sides, which the published form does not have, it meets a zero at the end.
    """

    def __init__(self, inputs: int, outputs: int, *, affine: bool) -> None:
        super().__init__()
        self.here = nn.Conv2d(inputs, outputs // 2, 1, 2, bias=False)
        self.beside = nn.Conv2d(inputs, outputs - outputs // 2, 1, 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        x = x.relu()
        out: Tensor = self.norm(torch.cat([self.here(x), self.beside(F.pad(x, (-1, 1, -1, 1)))], 1))
        return out


def _depthwise(channels: int, kernel: int, stride: int, dilation: int, affine: bool) -> list[nn.Module]:
    padding = dilation * (kernel // 2)
    return [
        nn.ReLU(),
        nn.Conv2d(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels, affine=affine),
    ]


def _separable(kernel: int) -> "Operation":
    """Twice a depthwise and a pointwise convolution; the first pair has the stride."""
    return lambda channels, stride, affine: nn.Sequential(
        *_depthwise(channels, kernel, stride, 1, affine), *_depthwise(channels, kernel, 1, 1, affine)
    )


def _dilated(kernel: int) -> "Operation":
    return lambda channels, stride, affine: nn.Sequential(*_depthwise(channels, kernel, stride, 2, affine))


def _max(channels: int, stride: int, affine: bool) -> nn.Module:
    return nn.MaxPool2d(3, stride, 1)


def _average(channels: int, stride: int, affine: bool) -> nn.Module:
    return nn.AvgPool2d(3, stride, 1, count_include_pad=False)


def _skip(channels: int, stride: int, affine: bool) -> nn.Module:
    return nn.Identity() if stride == 1 else Halved(channels, channels, affine=affine)


# (channels, stride, whether its norms have a scale and a shift) -> a layer that keeps the channels.
Operation = Callable[[int, int, bool], nn.Module]

# In the order of a search's choices. None of them is "nothing": an edge that is not wanted is left out.
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
