"""A small convolutional network without normalisation layers, for digits."""

from torch import nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.architectures.layers import Layers
from robustcli.errors import RobustCliError
from robustcli.fields import Activation, Count

# Two convolutions that halve the side: less than this leaves nothing.
_SMALLEST = 4


@ARCHITECTURES.register("small_cnn", smoke={"width": 4, "hidden": 16})
def small_cnn(
    shape: ImageShape, /, *, activation: Activation = "relu", width: Count = 16, hidden: Count = 100
) -> nn.Module:
    """Two strided 4x4 convolutions and two linear layers; the defaults are Wong et al.'s MNIST network.

    Each convolution halves the resolution: 28 pixels become 7, and 8 become 2.

    Args:
        activation: the nonlinearity, everywhere.
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
    new_activation = Layers(activation=activation).nonlinearity
    return nn.Sequential(
        nn.Conv2d(shape.channels, width, 4, stride=2, padding=1),
        new_activation(),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
        new_activation(),
        nn.Flatten(),
        nn.Linear(2 * width * (shape.height // 4) * (shape.width // 4), hidden),
        new_activation(),
        nn.Linear(hidden, shape.classes),
    )
