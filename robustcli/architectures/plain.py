"""Networks without shortcuts: chains of convolutions and pools."""

import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.architectures.layers import Layers, enlarged
from robustcli.registry.types import Activation, Downsample, Gate, PlainDownsample, PlainNorm


class Chain(nn.Module):
    """Features, global average, classifier.

    Args:
        upsample: factor that the images are enlarged by.
    """

    def __init__(self, features: list[nn.Module], classifier: nn.Module, upsample: int) -> None:
        super().__init__()
        self.enlarged = enlarged(upsample)
        self.features = nn.Sequential(*features)
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(self.enlarged(x)).mean((2, 3)))
        return logits


class LargestPixel(nn.Module):
    """The largest of 2x2 pixels, every `stride` pixels; a side of one pixel stays one, so no image is used up."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, (min(2, x.shape[2]), min(2, x.shape[3])), self.stride)


def plain_layers(
    activation: Activation, norm: PlainNorm, downsample: PlainDownsample, channel_gate: Gate, classes: int
) -> tuple[Layers, bool]:
    """The layers of a chain, and whether its pools take the largest pixel, which no convolution does."""
    is_max = downsample == "max"
    pool: Downsample = "strided" if downsample == "max" else downsample
    layers = Layers(activation=activation, norm=norm, downsample=pool, channel_gate=channel_gate, classes=classes)
    return layers, is_max


def activated(layers: Layers, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    """A convolution with bias, norm, activation, and a gate after it; what is not asked for is left out."""
    parts = (
        layers.convolution(inputs, outputs, kernel, stride, bias=True),
        layers.normalisation(outputs),
        layers.nonlinearity(),
        layers.gate(outputs),
    )
    return [part for part in parts if not isinstance(part, nn.Identity)]
