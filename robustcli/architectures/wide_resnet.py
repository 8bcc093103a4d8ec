"""Wide residual networks in the forms of TRADES and DeepMind (key families WRN and DM-WRN)."""

from typing import Literal

from torch import nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.architectures.layers import Layers
from robustcli.architectures.weight_names import Settings, Tensors, counts
from robustcli.architectures.wide_stages import deepmind_network, trades_network
from robustcli.errors import RobustCliError
from robustcli.registry.types import Activation, Count, Counts3, Downsample, Gate, NormLayer, StemStride, Upsample

# Channels of the stem; stage g has 16 * widen * 2**g.
_STEM = 16


def suggested(tensors: Tensors) -> Settings | None:
    """Depth and width, form and activation; weights with squeeze-and-excitation belong to other networks."""
    if "block1.layer.0.conv1.weight" in tensors:
        first = tensors["block1.layer.0.conv1.weight"]
        (blocks,) = counts(tensors, r"block%d\.layer\.(\d+)\.conv1\.weight", [1])
        published: Settings = {}
    elif "layer.0.block.0.conv_0.weight" in tensors and "layer.0.block.0.se.fc1.weight" not in tensors:
        first = tensors["layer.0.block.0.conv_0.weight"]
        (blocks,) = counts(tensors, r"layer\.%d\.block\.(\d+)\.conv_0\.weight", [0])
        published = {"form": "deepmind", "activation": "silu"}
    else:
        return None
    if "activation.alpha" in tensors:
        published["activation"] = "pssilu"
    return {"depth": 6 * blocks + 4, "widen": first.shape[0] // _STEM, **published}


@ARCHITECTURES.register(
    "wide_resnet",
    title="WideResNet-{depth}-{widen}",
    suggested_by="suggested",
    smoke={"depth": 10, "widen": 1},
)
def wide_resnet(
    shape: ImageShape,
    /,
    *,
    depth: Count = 28,
    widen: Count = 10,
    form: Literal["trades", "deepmind"] = "trades",
    activation: Activation = "relu",
    norm: NormLayer = "batch",
    downsample: Downsample = "strided",
    channel_gate: Gate = "none",
    stem_stride: StemStride = 1,
    strides: Counts3 = (1, 2, 2),
    upsample: Upsample = 1,
) -> nn.Module:
    """Wide residual network WRN-depth-widen: three stages of wide pre-activation blocks.

    The published "deepmind" networks use silu, so write activation: silu for them. There is no dropout, because the
    published robust networks set its rate to 0.

    Args:
        depth: number of layers, 6 n + 4 for n blocks per stage.
        widen: factor on the widths 16, 32 and 64 of the three stages.
        form: "trades" pads strided convolutions symmetrically; "deepmind" pads them only at the right and the bottom,
            with slower running statistics (momentum 0.01), and does not support the norms conv and conv_running.
            Weights of one form lose accuracy in the other.
        strides: strides of the three stages; [1, 1, 2] makes the last map twice as wide.

    Reference: Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016; forms: Zhang et al., "Theoretically
    Principled Trade-off between Robustness and Accuracy", ICML 2019, and Gowal et al., "Uncovering the Limits of
    Adversarial Training against Norm-Bounded Adversarial Examples", 2020; strides and upsampling: Xu et al.,
    "Understanding Adversarial Robustness from Feature Maps of Convolutional Layers", TNNLS 2025.
    """
    blocks, rest = divmod(depth - 4, 6)
    if rest or blocks < 1:
        nearest = 6 * max(1, round((depth - 4) / 6)) + 4
        raise RobustCliError(
            f"architecture.depth: {depth} is not 6 n + 4 for n >= 1 blocks in each of three stages; try {nearest}"
        )
    build = trades_network if form == "trades" else deepmind_network
    return build(
        shape,
        (blocks, blocks, blocks),
        (_STEM * widen, 2 * _STEM * widen, 4 * _STEM * widen),
        Layers.chosen(shape, activation, norm, downsample, channel_gate),
        stem=_STEM,
        stem_stride=stem_stride,
        strides=strides,
        upsample=upsample,
    )
