"""A small convolutional network without normalization layers, for digits."""

from torch import nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.architectures.layers import Layers
from robustcli.errors import RobustCliError
from robustcli.registry.types import Activation, Count, Gate

# Smallest side that remains after two convolutions that halve it.
_SMALLEST = 4


@ARCHITECTURES.register("small_cnn", added={"channel_gate": "none"}, smoke={"width": 4, "hidden": 16})
def small_cnn(
    shape: ImageShape,
    /,
    *,
    activation: Activation = "relu",
    channel_gate: Gate = "none",
    width: Count = 16,
    hidden: Count = 100,
) -> nn.Module:
    """Two strided 4x4 convolutions and two linear layers; the defaults are Wong et al.'s MNIST network.

    Each convolution halves the resolution: 28 pixels become 7, and 8 become 2. There are no options for norms, which
    the network does not have, and for pools, which do not fit kernels of even size.

    Args:
        width: channels of the first convolution; the second has twice as many.
        hidden: units of the hidden linear layer.

    Reference: Wong et al., "Fast is better than free: Revisiting adversarial training", ICLR 2020.
    """
    if min(shape.height, shape.width) < _SMALLEST:
        raise RobustCliError(
            f"architecture: small_cnn cannot take images of {shape.height}x{shape.width} pixels; its two "
            f"convolutions halve each side, so it needs at least {_SMALLEST}x{_SMALLEST}; "
            "preact_resnet18 takes any size"
        )
    layers = Layers(activation=activation, norm="none", channel_gate=channel_gate, classes=shape.classes)
    return nn.Sequential(
        *_halving(layers, shape.channels, width),
        *_halving(layers, width, 2 * width),
        nn.Flatten(),
        nn.Linear(2 * width * (shape.height // 4) * (shape.width // 4), hidden),
        layers.nonlinearity(),
        nn.Linear(hidden, shape.classes),
    )


def _halving(layers: Layers, inputs: int, outputs: int) -> list[nn.Module]:
    gate = layers.gate(outputs)
    gates = [] if isinstance(gate, nn.Identity) else [gate]
    return [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), layers.nonlinearity(), *gates]
