"""Parts of networks without shortcuts: chains of convolutions and pools."""

import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.architectures.layers import Layers
from robustcli.registry.types import Activation, Downsample, Gate, PlainDownsample, PlainNorm


class LargestPixel(nn.Module):
    """2x2 max pool with a stride; a side of one pixel stays one pixel."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, (min(2, x.shape[2]), min(2, x.shape[3])), self.stride)


def plain_layers(
    activation: Activation, norm: PlainNorm, downsample: PlainDownsample, channel_gate: Gate, classes: int
) -> tuple[Layers, bool]:
    """Return the factory of the layers of a chain, and True if it has max pools."""
    is_max = downsample == "max"
    pool: Downsample = "strided" if downsample == "max" else downsample
    layers = Layers(activation=activation, norm=norm, downsample=pool, channel_gate=channel_gate, classes=classes)
    return layers, is_max


def activated(layers: Layers, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    """Return a convolution with bias, norm, activation and gate, without those that are identities."""
    parts = (
        layers.convolution(inputs, outputs, kernel, stride, bias=True),
        layers.normalization(outputs),
        layers.nonlinearity(),
        layers.gate(outputs),
    )
    return [part for part in parts if not isinstance(part, nn.Identity)]
