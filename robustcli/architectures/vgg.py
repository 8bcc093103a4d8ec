"""VGG networks for small images, with adjustable pools."""

from typing import Literal

from torch import nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.architectures.chain import Chain
from robustcli.architectures.layers import enlarged
from robustcli.architectures.plain import LargestPixel, activated, plain_layers
from robustcli.registry.types import Activation, Count, Counts5, Gate, PlainDownsample, PlainNorm, Upsample

# Channels of the five groups of convolutions, relative to the first.
_WIDTHS = (1, 2, 4, 8, 8)
# Convolutions of each group, by number of layers with weights.
_DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


@ARCHITECTURES.register("vgg11", fixed={"depth": 11}, title="VGG-{depth}", smoke={"width": 4})
@ARCHITECTURES.register("vgg13", fixed={"depth": 13}, title="VGG-{depth}", smoke={"width": 4})
@ARCHITECTURES.register("vgg16", fixed={"depth": 16}, title="VGG-{depth}", smoke={"width": 4})
@ARCHITECTURES.register("vgg19", fixed={"depth": 19}, title="VGG-{depth}", smoke={"width": 4})
def vgg(
    shape: ImageShape,
    /,
    *,
    depth: int,
    form: Literal["rcm", "kuangliu"] = "rcm",
    activation: Activation = "relu",
    norm: PlainNorm = "batch",
    downsample: PlainDownsample = "max",
    channel_gate: Gate = "none",
    width: Count = 64,
    strides: Counts5 = (2, 2, 2, 2, 2),
    upsample: Upsample = 1,
) -> nn.Module:
    """VGG-{depth} for small images: five groups of 3x3 convolutions with a pool after each.

    Dropout (only in the form rcm: 0.5, after both hidden layers) draws from torch's global generator in training.

    Args:
        depth: layers with weights, three of which are the linear ones of form rcm.
        form: "rcm" ends with three linear layers and dropout (Xu et al.); "kuangliu" with a single linear layer.
        downsample: pools: max, average, flc or asap.
        width: channels of the first group; the others have 2, 4, 8 and 8 times as many, hidden layers 4 times.
        strides: strides of the five pools; 1 leaves a pool out, so [1, 1, 2, 2, 2] is the string 11222 of Xu et al.

    Reference: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR
        2015; form rcm: Xu et al., "Understanding Adversarial Robustness from Feature Maps of Convolutional Layers",
        TNNLS 2025.
    """
    layers, is_max = plain_layers(activation, norm, downsample, channel_gate, shape.classes)
    features: list[nn.Module] = []
    inputs = shape.channels
    for convolutions, factor, stride in zip(_DEPTHS[depth], _WIDTHS, strides, strict=True):
        for _ in range(convolutions):
            features += activated(layers, inputs, factor * width)
            inputs = factor * width
        if stride > 1:
            features.append(LargestPixel(stride) if is_max else layers.pool(stride))
    body = {"enlarged": enlarged(upsample), "features": nn.Sequential(*features)}
    if form == "kuangliu":
        return Chain(body, classifier=nn.Linear(inputs, shape.classes))
    hidden = 4 * width
    classifier = nn.Sequential(
        nn.Linear(inputs, hidden),
        layers.nonlinearity(),
        nn.Dropout(),
        nn.Linear(hidden, hidden),
        layers.nonlinearity(),
        nn.Dropout(),
        nn.Linear(hidden, shape.classes),
    )
    _draw(features, classifier)
    return Chain(body, classifier=classifier)


def _draw(features: list[nn.Module], classifier: nn.Sequential) -> None:
    """Draw convolutions from N(0, 2 / (k^2 outputs)) and linear weights from N(0, 0.01^2); biases 0; not in gates."""
    for module in features:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    for module in classifier:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
            nn.init.zeros_(module.bias)
