"""AlexNet for small images, with adjustable strides."""

from torch import nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.architectures.chain import Chain
from robustcli.architectures.layers import enlarged
from robustcli.architectures.plain import LargestPixel, activated, plain_layers
from robustcli.registry.types import Activation, Count, Counts4, Gate, PlainDownsample, PlainNorm, Upsample


@ARCHITECTURES.register("alexnet", smoke={"width": 4})
def alexnet(
    shape: ImageShape,
    /,
    *,
    activation: Activation = "relu",
    norm: PlainNorm = "none",
    downsample: PlainDownsample = "max",
    channel_gate: Gate = "none",
    width: Count = 64,
    strides: Counts4 = (2, 2, 2, 2),
    upsample: Upsample = 1,
) -> nn.Module:
    """AlexNet for small images: five convolutions, three pools, global average, three linear layers.

    A max pool of stride 1 makes the map one pixel smaller; average, flc and asap pools of stride 1 are left out.
    Dropout (0.5, before the first two linear layers) draws from torch's global generator in training.

    Args:
        norm: norm after every convolution: none (as published), batch, group, conv (preconditioned convolutions, then
            batch norms) or conv_running.
        downsample: max (max pools and a strided first convolution, as published), or average, flc or asap pooling in
            all four places.
        width: channels of the first convolution; the others have 3, 6, 4 and 4 times as many, the hidden layers 8
            times.
        strides: strides of the first convolution and the three pools; AlexNet-1122 of Xu et al. is [1, 1, 2, 2].

    Reference: Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014; this form: Xu et
        al., "Understanding Adversarial Robustness from Feature Maps of Convolutional Layers", TNNLS 2025.
    """
    layers, is_max = plain_layers(activation, norm, downsample, channel_gate, shape.classes)

    def pool(stride: int) -> list[nn.Module]:
        if is_max:
            return [LargestPixel(stride)]
        return [] if stride == 1 else [layers.pool(stride)]

    w = width
    features = [
        *activated(layers, shape.channels, w, 5, strides[0]),
        *pool(strides[1]),
        *activated(layers, w, 3 * w, 5),
        *pool(strides[2]),
        *activated(layers, 3 * w, 6 * w),
        *activated(layers, 6 * w, 4 * w),
        *activated(layers, 4 * w, 4 * w),
        *pool(strides[3]),
    ]
    classifier = nn.Sequential(
        nn.Dropout(),
        nn.Linear(4 * w, 8 * w),
        layers.nonlinearity(),
        nn.Dropout(),
        nn.Linear(8 * w, 8 * w),
        layers.nonlinearity(),
        nn.Linear(8 * w, shape.classes),
    )
    return Chain({"enlarged": enlarged(upsample), "features": nn.Sequential(*features)}, classifier=classifier)
