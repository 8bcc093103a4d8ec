"""SENet-18 for small images: pre-activation blocks that end with squeeze-and-excitation."""

from torch import nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.architectures.layers import Layers
from robustcli.architectures.postactivation import small_resnet
from robustcli.architectures.preactivation import PreActBlock
from robustcli.registry.types import Activation, Count, Counts4, Downsample, NormLayer, StemStride, Upsample


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
    stem_stride: StemStride = 1,
    strides: Counts4 = (1, 2, 2, 2),
    upsample: Upsample = 1,
) -> nn.Module:
    """SENet-18 for small images: eight pre-activation blocks that end with squeeze-and-excitation.

    As in the network commonly used for 32 pixels, the last features are not normalized, and the stem has a norm of its
    own. Projections read the activated input. For other gates use preact_resnet18 in the form "a".

    Args:
        reduction: reduction of the channels inside squeeze-and-excitation; at least one channel remains.
        activation: nonlinearity of all layers, except inside squeeze-and-excitation.
        width: channels of the stem and the first stage; each later stage has twice as many.
        strides: strides of the four stages; [1, 1, 2, 2] makes the last map twice as wide.

    Reference: Hu, Shen and Sun, "Squeeze-and-Excitation Networks", CVPR 2018.
    """
    layers = Layers(activation=activation, norm=norm, downsample=downsample, channel_gate="se", reduction=reduction)
    return small_resnet(
        shape,
        PreActBlock,
        (2, 2, 2, 2),
        layers,
        width=width,
        stem_stride=stem_stride,
        strides=strides,
        upsample=upsample,
    )
