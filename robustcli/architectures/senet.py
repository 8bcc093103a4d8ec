"""SENet-18 for small images: pre-activation blocks that end with squeeze-and-excitation."""

from typing import Literal

from torch import nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.architectures.layers import Layers
from robustcli.architectures.postactivation import ResNet
from robustcli.architectures.preactivation import PreActBlock
from robustcli.registry.types import Activation, Count, Counts4, Downsample, NormLayer


@ARCHITECTURES.register("senet18", smoke={"width": 8, "reduction": 2})
def senet18(
    shape: ImageShape,
    /,
    *,
    reduction: Count = 16,
    activation: Activation = "relu",
    norm: NormLayer = "batch",
    downsample: Downsample = "strided",
    width: Count = 64,
    stem_stride: Literal[1, 2] = 1,
    strides: Counts4 = (1, 2, 2, 2),
    upsample: Count = 1,
) -> nn.Module:
    """SENet-18 for small images: eight pre-activation blocks, each ending with squeeze-and-excitation.

    Nothing normalises the last features, and the stem is normalised although a block with a norm follows: both as in
    the network that is in use for 32 pixels. Projections see the activated input. Another gate would be another
    network: preact_resnet18 in the form "a" has them all.

    Args:
        reduction: of the channels inside squeeze-and-excitation, which keeps one at least.
        activation: the nonlinearity, everywhere but inside squeeze-and-excitation.
        norm: batch, group, conv (preconditioned convolutions beside batch norms), or conv_running (conv, evaluated with
            a running mean of the divisors).
        downsample: convolutions that are strided, or average, flc or asap pooling and then a convolution.
        width: channels of the stem and the first stage; each later stage doubles it.
        stem_stride: 2 halves the resolution at once, for about a quarter of the cost.
        strides: of the four stages; [1, 1, 2, 2] makes the last map twice as wide.
        upsample: factor that images are enlarged by, each pixel repeated, before the stem.

    Reference: Hu, Shen and Sun, "Squeeze-and-Excitation Networks", CVPR 2018.
    """
    layers = Layers(activation=activation, norm=norm, downsample=downsample, channel_gate="se", reduction=reduction)
    return ResNet(
        shape,
        PreActBlock,
        (2, 2, 2, 2),
        layers,
        width=width,
        stem_stride=stem_stride,
        strides=strides,
        upsample=upsample,
    )
