"""ResNets with a stem for small images: activation after every normalisation (key family RN)."""

from typing import Literal

from torch import nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.architectures.layers import Layers
from robustcli.architectures.postactivation import BasicBlock, Bottleneck, ResNet
from robustcli.fields import Activation, Count, Counts4, Downsample, Gate, NormLayer


@ARCHITECTURES.register("resnet18", smoke={"width": 4})
def resnet18(
    shape: ImageShape,
    /,
    *,
    activation: Activation = "relu",
    norm: NormLayer = "batch",
    downsample: Downsample = "strided",
    channel_gate: Gate = "none",
    width: Count = 64,
    stem_stride: Literal[1, 2] = 1,
    strides: Counts4 = (1, 2, 2, 2),
    upsample: Count = 1,
) -> nn.Module:
    """ResNet-18 for small images: eight blocks of two 3x3 convolutions, activation last.

    The stem is a 3x3 convolution without pooling, so 32 pixels become 4 before the global average.

    Args:
        activation: the nonlinearity, everywhere.
        norm: batch, group, or conv (preconditioned convolutions, then batch norms).
        downsample: convolutions that are strided, or average, flc or asap pooling and then a convolution.
        channel_gate: what ends a residual branch: none, se or residual_se.
        width: channels of the stem and the first stage; each later stage doubles it.
        stem_stride: 2 halves the resolution at once, for about a quarter of the cost.
        strides: of the four stages; [1, 1, 2, 2] is ResNet18-1122 of Xu et al., whose last map is 8 pixels wide.
        upsample: factor that images are enlarged by, each pixel repeated, before the stem.

    Reference: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; strides and upsampling: Xu et
        al., "Understanding Adversarial Robustness from Feature Maps of Convolutional Layers", TNNLS 2025.
    """
    layers = Layers(activation=activation, norm=norm, downsample=downsample, channel_gate=channel_gate)
    return ResNet(
        shape,
        BasicBlock,
        (2, 2, 2, 2),
        layers,
        width=width,
        stem_stride=stem_stride,
        strides=strides,
        upsample=upsample,
    )


@ARCHITECTURES.register("resnet34", smoke={"width": 4})
def resnet34(
    shape: ImageShape,
    /,
    *,
    activation: Activation = "relu",
    norm: NormLayer = "batch",
    downsample: Downsample = "strided",
    channel_gate: Gate = "none",
    width: Count = 64,
    stem_stride: Literal[1, 2] = 1,
    strides: Counts4 = (1, 2, 2, 2),
    upsample: Count = 1,
) -> nn.Module:
    """ResNet-34 for small images: sixteen blocks of two 3x3 convolutions, activation last.

    The stem is a 3x3 convolution without pooling, so 32 pixels become 4 before the global average.

    Args:
        activation: the nonlinearity, everywhere.
        norm: batch, group, or conv (preconditioned convolutions, then batch norms).
        downsample: convolutions that are strided, or average, flc or asap pooling and then a convolution.
        channel_gate: what ends a residual branch: none, se or residual_se.
        width: channels of the stem and the first stage; each later stage doubles it.
        stem_stride: 2 halves the resolution at once, for about a quarter of the cost.
        strides: of the four stages; [1, 1, 2, 2] is ResNet34-1122 of Xu et al., whose last map is 8 pixels wide.
        upsample: factor that images are enlarged by, each pixel repeated, before the stem.

    Reference: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; strides and upsampling: Xu et
        al., "Understanding Adversarial Robustness from Feature Maps of Convolutional Layers", TNNLS 2025.
    """
    layers = Layers(activation=activation, norm=norm, downsample=downsample, channel_gate=channel_gate)
    return ResNet(
        shape,
        BasicBlock,
        (3, 4, 6, 3),
        layers,
        width=width,
        stem_stride=stem_stride,
        strides=strides,
        upsample=upsample,
    )


@ARCHITECTURES.register("resnet50", smoke={"width": 4})
def resnet50(
    shape: ImageShape,
    /,
    *,
    activation: Activation = "relu",
    norm: NormLayer = "batch",
    downsample: Downsample = "strided",
    channel_gate: Gate = "none",
    width: Count = 64,
    stem_stride: Literal[1, 2] = 1,
    strides: Counts4 = (1, 2, 2, 2),
    upsample: Count = 1,
) -> nn.Module:
    """ResNet-50 for small images: sixteen bottlenecks, activation last.

    The stem is a 3x3 convolution without pooling, so 32 pixels become 4 before the global average.

    Args:
        activation: the nonlinearity, everywhere.
        norm: batch, group, or conv (preconditioned convolutions, then batch norms).
        downsample: convolutions that are strided, or average, flc or asap pooling and then a convolution.
        channel_gate: what ends a residual branch: none, se or residual_se.
        width: channels of the stem and the first stage; each later stage doubles it.
        stem_stride: 2 halves the resolution at once, for about a quarter of the cost.
        strides: of the four stages; [1, 1, 2, 2] is ResNet50-1122 of Xu et al., whose last map is 8 pixels wide.
        upsample: factor that images are enlarged by, each pixel repeated, before the stem.

    Reference: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; strides and upsampling: Xu et
        al., "Understanding Adversarial Robustness from Feature Maps of Convolutional Layers", TNNLS 2025.
    """
    layers = Layers(activation=activation, norm=norm, downsample=downsample, channel_gate=channel_gate)
    return ResNet(
        shape,
        Bottleneck,
        (3, 4, 6, 3),
        layers,
        width=width,
        stem_stride=stem_stride,
        strides=strides,
        upsample=upsample,
    )


@ARCHITECTURES.register("resnet101", smoke={"width": 4})
def resnet101(
    shape: ImageShape,
    /,
    *,
    activation: Activation = "relu",
    norm: NormLayer = "batch",
    downsample: Downsample = "strided",
    channel_gate: Gate = "none",
    width: Count = 64,
    stem_stride: Literal[1, 2] = 1,
    strides: Counts4 = (1, 2, 2, 2),
    upsample: Count = 1,
) -> nn.Module:
    """ResNet-101 for small images: thirty-three bottlenecks, activation last.

    The stem is a 3x3 convolution without pooling, so 32 pixels become 4 before the global average.

    Args:
        activation: the nonlinearity, everywhere.
        norm: batch, group, or conv (preconditioned convolutions, then batch norms).
        downsample: convolutions that are strided, or average, flc or asap pooling and then a convolution.
        channel_gate: what ends a residual branch: none, se or residual_se.
        width: channels of the stem and the first stage; each later stage doubles it.
        stem_stride: 2 halves the resolution at once, for about a quarter of the cost.
        strides: of the four stages; [1, 1, 2, 2] is ResNet101-1122 of Xu et al., whose last map is 8 pixels wide.
        upsample: factor that images are enlarged by, each pixel repeated, before the stem.

    Reference: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; strides and upsampling: Xu et
        al., "Understanding Adversarial Robustness from Feature Maps of Convolutional Layers", TNNLS 2025.
    """
    layers = Layers(activation=activation, norm=norm, downsample=downsample, channel_gate=channel_gate)
    return ResNet(
        shape,
        Bottleneck,
        (3, 4, 23, 3),
        layers,
        width=width,
        stem_stride=stem_stride,
        strides=strides,
        upsample=upsample,
    )


@ARCHITECTURES.register("resnet152", smoke={"width": 4})
def resnet152(
    shape: ImageShape,
    /,
    *,
    activation: Activation = "relu",
    norm: NormLayer = "batch",
    downsample: Downsample = "strided",
    channel_gate: Gate = "none",
    width: Count = 64,
    stem_stride: Literal[1, 2] = 1,
    strides: Counts4 = (1, 2, 2, 2),
    upsample: Count = 1,
) -> nn.Module:
    """ResNet-152 for small images: fifty bottlenecks, activation last.

    The stem is a 3x3 convolution without pooling, so 32 pixels become 4 before the global average.

    Args:
        activation: the nonlinearity, everywhere.
        norm: batch, group, or conv (preconditioned convolutions, then batch norms).
        downsample: convolutions that are strided, or average, flc or asap pooling and then a convolution.
        channel_gate: what ends a residual branch: none, se or residual_se.
        width: channels of the stem and the first stage; each later stage doubles it.
        stem_stride: 2 halves the resolution at once, for about a quarter of the cost.
        strides: of the four stages; [1, 1, 2, 2] is ResNet152-1122 of Xu et al., whose last map is 8 pixels wide.
        upsample: factor that images are enlarged by, each pixel repeated, before the stem.

    Reference: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; strides and upsampling: Xu et
        al., "Understanding Adversarial Robustness from Feature Maps of Convolutional Layers", TNNLS 2025.
    """
    layers = Layers(activation=activation, norm=norm, downsample=downsample, channel_gate=channel_gate)
    return ResNet(
        shape,
        Bottleneck,
        (3, 8, 36, 3),
        layers,
        width=width,
        stem_stride=stem_stride,
        strides=strides,
        upsample=upsample,
    )
