"""RegNet: stages of grouped bottleneck blocks with widths on a quantized line; for small images and ImageNet."""

from typing import Literal

from torch import nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.architectures.layers import Layers
from robustcli.architectures.quantized_stages import Stages, network_of, on_the_line, whole_groups
from robustcli.errors import RobustCliError
from robustcli.registry.types import (
    AboveOne,
    Activation,
    Count,
    Downsample,
    Gate,
    NonNegative,
    NormLayer,
    Positive,
    StemStride,
    Upsample,
)

# Squeeze-and-excitation of RegNetY, as a share of the input channels of a block.
_SQUEEZE = 0.25

# Networks of the rule, published for ImageNet.
_LINES = {
    "x_200mf": on_the_line(13, 24, 36.44, 2.49, 8),
    "x_400mf": on_the_line(22, 24, 24.48, 2.54, 16),
    "y_400mf": on_the_line(16, 48, 27.89, 2.09, 8, _SQUEEZE),
    "x_800mf": on_the_line(16, 56, 35.73, 2.28, 16),
    "y_800mf": on_the_line(14, 56, 38.84, 2.4, 16, _SQUEEZE),
    "x_1_6gf": on_the_line(18, 80, 34.01, 2.25, 24),
    "y_1_6gf": on_the_line(27, 48, 20.71, 2.65, 24, _SQUEEZE),
}
# Used for 32 pixels under the same names; they differ from the rule.
_FOR_SMALL_IMAGES = {
    "x_400mf": Stages((1, 2, 7, 12), (32, 64, 160, 384), 16),
    "y_400mf": Stages((1, 2, 7, 12), (32, 64, 160, 384), 16, _SQUEEZE),
}


def _in_form(
    shape: ImageShape, stages: Stages, form: Literal["small", "imagenet"], layers: Layers, upsample: int
) -> nn.Module:
    """Return a network with the stem and strides for 32 or for 224 pixels."""
    count = len(stages.depths)
    if form == "imagenet":
        return network_of(shape, stages, layers, stem=32, stem_stride=2, strides=(2,) * count, upsample=upsample)
    strides = tuple(1 if number < 2 else 2 for number in range(count))
    return network_of(shape, stages, layers, stem=64, stem_stride=1, strides=strides, upsample=upsample)


@ARCHITECTURES.register("regnet", added={"channel_gate": "none"}, smoke={"size": "x_200mf"})
def regnet(
    shape: ImageShape,
    /,
    *,
    size: Literal["x_200mf", "x_400mf", "y_400mf", "x_800mf", "y_800mf", "x_1_6gf", "y_1_6gf"] = "x_200mf",
    form: Literal["small", "imagenet"] = "small",
    activation: Activation = "relu",
    norm: NormLayer = "batch",
    downsample: Downsample = "strided",
    channel_gate: Gate = "none",
    upsample: Upsample = 1,
) -> nn.Module:
    """RegNet by its published name: four stages of grouped bottleneck blocks, with widths on a quantized line.

    RegNetY has squeeze-and-excitation after every 3x3 convolution, a quarter as wide inside as the input of the block,
    with ReLU whatever the activation, and besides any gate at the end of the branch.
    Convolutions are initialized by fan-out, the classifier from N(0, 0.01^2). For other depths and widths use
    regnet_rule or regnet_stages.

    Args:
        size: X or Y, and the multiply-accumulates for an ImageNet image (mf: 10^6, gf: 10^9).
        form: "small" has a stem of 64 channels with stride 1 and the strides 1, 1, 2, 2 (published for 32 pixels, with
            other widths of x_400mf and y_400mf than for ImageNet); "imagenet" has a stem of 32 channels, with stride 2
            in the stem and in every stage.

    Reference: Radosavovic et al., "Designing Network Design Spaces", CVPR 2020.
    """
    layers = Layers.chosen(shape, activation, norm, downsample, channel_gate)
    published = {**_LINES, **_FOR_SMALL_IMAGES} if form == "small" else _LINES
    return _in_form(shape, published[size], form, layers, upsample)


@ARCHITECTURES.register(
    "regnet_rule", added={"channel_gate": "none"}, smoke={"depth": 3, "w0": 8.0, "wa": 8.0, "wm": 2.0, "group_width": 4}
)
def regnet_rule(
    shape: ImageShape,
    /,
    *,
    depth: Count = 13,
    w0: Positive = 24.0,
    wa: NonNegative = 36.44,
    wm: AboveOne = 2.49,
    group_width: Count = 8,
    squeeze: NonNegative = 0.0,
    form: Literal["small", "imagenet"] = "small",
    activation: Activation = "relu",
    norm: NormLayer = "batch",
    downsample: Downsample = "strided",
    channel_gate: Gate = "none",
    upsample: Upsample = 1,
) -> nn.Module:
    """RegNet by its rule: block j has the width w0 + wa j, rounded to the nearest w0 times a power of wm.

    The defaults give RegNetX-200MF. Blocks of the same width form a stage; widths are multiples of 8 and of the groups.

    Args:
        depth: number of all blocks.
        w0: width of the first block.
        wa: growth of the width per block, before rounding.
        wm: ratio of the widths of neighboring stages, above 1.
        group_width: channels of a group in the 3x3 convolutions.
        squeeze: channels inside squeeze-and-excitation, as a share of the input channels of the block; 0 gives RegNetX,
            0.25 RegNetY.
        form: "small" has a stem of 64 channels with stride 1, and stride 1 in two stages; "imagenet" has a stem of 32
            channels, with stride 2 in the stem and in every stage.

    Reference: Radosavovic et al., "Designing Network Design Spaces", CVPR 2020.
    """
    layers = Layers.chosen(shape, activation, norm, downsample, channel_gate)
    return _in_form(shape, on_the_line(depth, w0, wa, wm, group_width, squeeze), form, layers, upsample)


@ARCHITECTURES.register(
    "regnet_stages", added={"channel_gate": "none"}, smoke={"depths": (1, 1), "widths": (8, 16), "strides": (1, 2)}
)
def regnet_stages(
    shape: ImageShape,
    /,
    *,
    depths: tuple[Count, ...] = (1, 1, 4, 7),
    widths: tuple[Count, ...] = (24, 56, 152, 368),
    strides: tuple[Count, ...] = (1, 1, 2, 2),
    group_width: Count = 8,
    squeeze: NonNegative = 0.0,
    stem: Count = 64,
    stem_stride: StemStride = 1,
    activation: Activation = "relu",
    norm: NormLayer = "batch",
    downsample: Downsample = "strided",
    channel_gate: Gate = "none",
    upsample: Upsample = 1,
) -> nn.Module:
    """RegNet with depths and widths stage by stage; the defaults are RegNetX-200MF for small images.

    Args:
        depths: blocks of each stage.
        widths: channels of each stage, in whole groups.
        strides: strides of the first block of each stage.
        group_width: channels of a group in the 3x3 convolutions; a narrower stage is one group.
        squeeze: channels inside squeeze-and-excitation, as a share of the input channels of the block; 0 gives RegNetX,
            0.25 RegNetY.
        stem: channels of the first convolution.

    Reference: Radosavovic et al., "Designing Network Design Spaces", CVPR 2020.
    """
    if not len(depths) == len(widths) == len(strides) or not depths:
        raise RobustCliError(
            f"architecture.depths: {len(depths)} stages, but {len(widths)} widths and {len(strides)} strides; "
            "give the same number of each"
        )
    for width in widths:
        if width != whole_groups(width, group_width):
            raise RobustCliError(
                f"architecture.widths: {width} channels cannot be divided into groups of {group_width}; "
                f"write {whole_groups(width, group_width)}, or change group_width"
            )
    return network_of(
        shape,
        Stages(depths, widths, group_width, squeeze),
        Layers.chosen(shape, activation, norm, downsample, channel_gate),
        stem=stem,
        stem_stride=stem_stride,
        strides=strides,
        upsample=upsample,
    )
