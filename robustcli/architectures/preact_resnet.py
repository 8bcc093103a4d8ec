"""Pre-activation ResNets for small images, in the four published forms (key families PRN and DM-PRN).

The forms "a", "b" and "c" share most keys of their weights, "b" and "c" all of them: weights of one form load into the
other without an error, but lose accuracy. So the form is part of the spec.
"""

from functools import partial
from typing import Literal

from torch import nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.architectures.chain import Chain, doubling, named, stages
from robustcli.architectures.layers import Layers, enlarged
from robustcli.architectures.preactivation import DeepMindPreActBlock, PreActBlock, PreActBottleneck
from robustcli.architectures.weight_names import Settings, Tensors, residual_depth, usual_residual_depth, width_of
from robustcli.registry.types import Activation, Count, Counts4, Downsample, Gate, NormLayer, StemStride, Upsample

# Blocks of each stage, by number of layers with weights.
_BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


def suggested(tensors: Tensors) -> Settings | None:
    """Depth, form and width of a network with basic blocks."""
    if {"layer_0.0.conv_2d_1.weight", "conv_2d.weight"} <= set(tensors):
        depth = residual_depth(tensors, r"layer_%d\.(\d+)\.conv_2d_1\.weight", (0, 1, 2, 3))
        return {"depth": depth, "form": "dm", "activation": "silu", **width_of(tensors["conv_2d.weight"])}
    return _usual(tensors)


def suggested_bottleneck(tensors: Tensors) -> Settings | None:
    """Form and width of a network with 50 layers."""
    settings = _usual(tensors)
    return settings if settings is not None and settings.pop("depth") == 50 else None


def _usual(tensors: Tensors) -> Settings | None:
    depth = usual_residual_depth(tensors)
    if depth is None or "fc.weight" in tensors or "bn1.weight" in tensors:
        return None
    # Without a norm at the end it is form "a"; "b", the default, and "c" have equal names.
    form = {} if "bn.weight" in tensors else {"form": "a"}
    return {"depth": depth, **form, **width_of(tensors["conv1.weight"])}


@ARCHITECTURES.register(
    "preact_resnet10", fixed={"depth": 10}, title="PreActResNet-{depth}", suggested_by="suggested", smoke={"width": 4}
)
@ARCHITECTURES.register(
    "preact_resnet18", fixed={"depth": 18}, title="PreActResNet-{depth}", suggested_by="suggested", smoke={"width": 4}
)
@ARCHITECTURES.register(
    "preact_resnet34", fixed={"depth": 34}, title="PreActResNet-{depth}", suggested_by="suggested", smoke={"width": 4}
)
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
    stem_stride: StemStride = 1,
    strides: Counts4 = (1, 2, 2, 2),
    upsample: Upsample = 1,
) -> nn.Module:
    """Pre-activation ResNet-{depth} for small images.

    Depth 18 is the usual network of small robustness studies; depth 10 learns more in a short training on a CPU. The
    published "dm" networks use silu, so write activation: silu for them.

    Args:
        depth: layers with weights.
        form: input of the projections on shortcuts, and end of the network. "a": raw input, no norm at the end (Wong et
            al.'s checkpoint). "b": activated input, norm (Rice et al., AWP). "c": raw input, norm (Wong et al.'s later
            code, FLC). "dm": DeepMind's, with a raw 3x3 projection, "SAME" padding, slow running statistics (momentum
            0.01) and a norm.
        width: channels of the stem and the first stage; each later stage has twice as many.
        strides: strides of the four stages; [1, 1, 2, 2] makes the last map twice as wide.

    Reference: He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016; form "dm": Rebuffi et al.,
        "Fixing Data Augmentation to Improve Adversarial Robustness", 2021; strides and upsampling:
        Xu et al., "Understanding Adversarial Robustness from Feature Maps of Convolutional Layers", TNNLS 2025.
    """
    blocks = _BLOCKS[depth]
    layers = Layers.chosen(shape, activation, norm, downsample, channel_gate)
    build = _deepmind_network if form == "dm" else partial(_usual_network, block=PreActBlock, form=form)
    return build(shape, blocks, layers, width=width, stem_stride=stem_stride, strides=strides, upsample=upsample)


@ARCHITECTURES.register(
    "preact_resnet50", title="PreActResNet-50", suggested_by="suggested_bottleneck", smoke={"width": 4}
)
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
    stem_stride: StemStride = 1,
    strides: Counts4 = (1, 2, 2, 2),
    upsample: Upsample = 1,
) -> nn.Module:
    """Pre-activation ResNet-50 for small images, with sixteen bottleneck blocks.

    Args:
        form: input of the projections on shortcuts, and end of the network. "a": raw input, no norm at the end. "b":
            activated input, norm. "c": raw input, norm.
        width: channels of the stem and inside the first stage; each later stage doubles it.
        strides: strides of the four stages; [1, 1, 2, 2] makes the last map twice as wide.

    Reference: He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016; strides and upsampling:
        Xu et al., "Understanding Adversarial Robustness from Feature Maps of Convolutional Layers", TNNLS 2025.
    """
    layers = Layers.chosen(shape, activation, norm, downsample, channel_gate)
    return _usual_network(
        shape,
        (3, 4, 6, 3),
        layers,
        block=PreActBottleneck,
        form=form,
        width=width,
        stem_stride=stem_stride,
        strides=strides,
        upsample=upsample,
    )


def _usual_network(
    shape: ImageShape,
    depths: Counts4,
    layers: Layers,
    *,
    block: type[PreActBlock] | type[PreActBottleneck],
    form: Literal["a", "b", "c"],
    width: int,
    stem_stride: int,
    strides: Counts4,
    upsample: int,
) -> Chain:
    """Convolution, four stages, norm and activation unless the form is "a", global average, linear classifier."""

    def new(inputs: int, width: int, stride: int) -> nn.Module:
        return block(inputs, width, stride, layers, projects_raw=form != "b")

    outputs = block.expansion * 8 * width
    parts: dict[str, nn.Module] = {
        "enlarged": enlarged(upsample),
        "conv1": layers.convolution(shape.channels, width, 3, stem_stride),
    }
    parts |= named("layer", stages(new, width, depths, doubling(width), strides, block.expansion))
    if form != "a":
        parts |= {"bn": layers.normalization(outputs), "activation": layers.nonlinearity()}
    return Chain(parts, linear=nn.Linear(outputs, shape.classes))


def _deepmind_network(
    shape: ImageShape,
    depths: Counts4,
    layers: Layers,
    *,
    width: int,
    stem_stride: int,
    strides: Counts4,
    upsample: int,
) -> Chain:
    """Convolution, four stages, norm, activation, global average, linear classifier."""
    layers = layers.of_deepmind()

    def new(inputs: int, width: int, stride: int) -> nn.Module:
        return DeepMindPreActBlock(inputs, width, stride, layers)

    parts: dict[str, nn.Module] = {
        "enlarged": enlarged(upsample),
        "conv_2d": layers.convolution(shape.channels, width, 3, stem_stride),
    }
    parts |= named("layer_", stages(new, width, depths, doubling(width), strides), first=0)
    parts |= {"batchnorm": layers.normalization(8 * width), "activation": layers.nonlinearity()}
    return Chain(parts, logits=nn.Linear(8 * width, shape.classes))
