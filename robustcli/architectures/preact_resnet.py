"""Pre-activation ResNets for small images, in the four forms that are in circulation (PRN, DM-PRN).

Forms "a", "b" and "c" share most keys, and "b" and "c" all of them: weights trained as one load into the
other without an error and classify worse. The form is therefore part of the spec.
"""

from typing import Literal

from torch import nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.architectures.layers import Layers
from robustcli.architectures.preactivation import DeepMindPreActResNet, PreActBlock, PreActBottleneck, PreActResNet
from robustcli.registry.types import Activation, Count, Counts4, Downsample, Gate, NormLayer

# By layers with weights, how many blocks each stage has.
_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


@ARCHITECTURES.register("preact_resnet18", fixed={"depth": 18}, smoke={"width": 4})
@ARCHITECTURES.register("preact_resnet34", fixed={"depth": 34}, smoke={"width": 4})
def preact_resnet(
    shape: ImageShape,
    /,
    *,
    depth: int,
    form: Literal["a", "b", "c", "dm"] = "b",
    activation: Activation = "relu",
    norm: NormLayer = "batch",
    downsample: Downsample = "strided",
    channel_gate: Gate = "none",
    width: Count = 64,
    stem_stride: Literal[1, 2] = 1,
    strides: Counts4 = (1, 2, 2, 2),
    upsample: Count = 1,
) -> nn.Module:
    """Pre-activation ResNet-{depth} for small images.

    Depth 18 is the usual network of small robustness studies. The published "dm" networks use silu; the activation
    stays what `activation` says.

    Args:
        depth: layers with weights.
        form: "a" projects the raw input and ends without normalisation (Wong et al.'s checkpoint); "b" projects
            the activated input and normalises at the end (Rice et al., AWP); "c" projects the raw input and
            normalises at the end (Wong et al.'s later code, FLC); "dm" is DeepMind's: raw 3x3 projection, "SAME"
            padding, slow running statistics (momentum 0.01), normalises at the end.
        activation: the nonlinearity, everywhere.
        norm: batch, group, conv (preconditioned convolutions beside batch norms) or conv_running (conv, evaluated with
            a running mean of the divisors); both are published for networks that normalise what a convolution puts
            out.
        downsample: convolutions that are strided, or average, flc or asap pooling and then a convolution.
        channel_gate: what ends a residual branch: none, se, residual_se or cifs (its probes learn with the defense
            cifs).
        width: channels of the stem and the first stage; each later stage doubles it.
        stem_stride: 2 halves the resolution at once, for about a quarter of the cost.
        strides: of the four stages; [1, 1, 2, 2] makes the last map twice as wide.
        upsample: factor that images are enlarged by, each pixel repeated, before the stem.

    Reference: He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016; form "dm": Rebuffi et al.,
        "Fixing Data Augmentation to Improve Adversarial Robustness", 2021; strides and upsampling:
        Xu et al., "Understanding Adversarial Robustness from Feature Maps of Convolutional Layers", TNNLS 2025.
    """
    blocks = _BLOCKS[depth]
    layers = Layers(
        activation=activation, norm=norm, downsample=downsample, channel_gate=channel_gate, classes=shape.classes
    )
    if form == "dm":
        return DeepMindPreActResNet(
            shape, blocks, layers, width=width, stem_stride=stem_stride, strides=strides, upsample=upsample
        )
    return PreActResNet(
        shape,
        PreActBlock,
        blocks,
        form,
        layers,
        width=width,
        stem_stride=stem_stride,
        strides=strides,
        upsample=upsample,
    )


@ARCHITECTURES.register("preact_resnet50", smoke={"width": 4})
def preact_resnet50(
    shape: ImageShape,
    /,
    *,
    form: Literal["a", "b", "c"] = "b",
    activation: Activation = "relu",
    norm: NormLayer = "batch",
    downsample: Downsample = "strided",
    channel_gate: Gate = "none",
    width: Count = 64,
    stem_stride: Literal[1, 2] = 1,
    strides: Counts4 = (1, 2, 2, 2),
    upsample: Count = 1,
) -> nn.Module:
    """Pre-activation ResNet-50 for small images: sixteen bottlenecks.

    Args:
        form: which input a projection sees, and whether the last features are normalised: "a" raw, no; "b"
            activated, yes; "c" raw, yes.
        activation: the nonlinearity, everywhere.
        norm: batch, group, conv (preconditioned convolutions beside batch norms) or conv_running (conv, evaluated with
            a running mean of the divisors); both are published for networks that normalise what a convolution puts
            out.
        downsample: convolutions that are strided, or average, flc or asap pooling and then a convolution.
        channel_gate: what ends a residual branch: none, se, residual_se or cifs (its probes learn with the defense
            cifs).
        width: channels of the stem and inside the first stage; each later stage doubles it.
        stem_stride: 2 halves the resolution at once, for about a quarter of the cost.
        strides: of the four stages; [1, 1, 2, 2] makes the last map twice as wide.
        upsample: factor that images are enlarged by, each pixel repeated, before the stem.

    Reference: He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016; strides and upsampling:
        Xu et al., "Understanding Adversarial Robustness from Feature Maps of Convolutional Layers", TNNLS 2025.
    """
    layers = Layers(
        activation=activation, norm=norm, downsample=downsample, channel_gate=channel_gate, classes=shape.classes
    )
    return PreActResNet(
        shape,
        PreActBottleneck,
        (3, 4, 6, 3),
        form,
        layers,
        width=width,
        stem_stride=stem_stride,
        strides=strides,
        upsample=upsample,
    )
