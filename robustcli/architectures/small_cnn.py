"""A small convolutional network without normalisation layers, for digits."""

from torch import nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.architectures.layers import Layers
from robustcli.errors import RobustCliError
from robustcli.registry.types import Activation, Count, Gate

# Two convolutions that halve the side: less than this leaves nothing.
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

    Each convolution halves the resolution: 28 pixels become 7, and 8 become 2. There is no choice of norms, which it is
    without, nor of pooling, after which kernels of four pixels would have no centre.

    Args:
        activation: the nonlinearity, everywhere.
        channel_gate: what every activated convolution goes through: none, se, residual_se or cifs (its probes learn
            with the defense cifs).
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
