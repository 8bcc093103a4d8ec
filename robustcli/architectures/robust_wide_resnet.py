"""WRN-34-R: a wide residual network with separate depths and widths of its three stages (key family RWRN)."""

from torch import nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.architectures.layers import Layers
from robustcli.architectures.robust_stages import residual_stages
from robustcli.architectures.weight_names import Settings, Tensors, has_three_stages, three_stages
from robustcli.architectures.wide_stages import WideBlock
from robustcli.registry.types import Activation, Counts3, Downsample, Gate, NormLayer, Upsample


def suggested(tensors: Tensors) -> Settings | None:
    """Depths and widths of the stages; it has a norm after the last one."""
    if not has_three_stages(tensors) or "bn1.weight" not in tensors:
        return None
    return three_stages(tensors, "conv2", 1)


@ARCHITECTURES.register(
    "robust_wide_resnet", suggested_by="suggested", smoke={"depths": (1, 1, 1), "widths": (1, 1, 1)}
)
def robust_wide_resnet(
    shape: ImageShape,
    /,
    *,
    depths: Counts3 = (5, 5, 5),
    widths: Counts3 = (20, 20, 8),
    activation: Activation = "relu",
    norm: NormLayer = "batch",
    downsample: Downsample = "strided",
    channel_gate: Gate = "none",
    upsample: Upsample = 1,
) -> nn.Module:
    """Wide residual network with separate depths and widths of its three stages; the defaults give WRN-34-R.

    The blocks are those of wide_resnet in the form "trades"; equal depths and widths give that network.

    Args:
        depths: blocks in each stage.
        widths: factors on the 16, 32 and 64 channels of the stages.

    Reference: Huang et al., "Exploring Architectural Ingredients of Adversarially Robust Deep Neural Networks",
        NeurIPS 2021.
    """
    layers = Layers.chosen(shape, activation, norm, downsample, channel_gate)

    def new_block(inputs: int, planes: int, stride: int) -> nn.Module:
        return WideBlock(inputs, planes, stride, layers)

    return residual_stages(shape, new_block, 1, depths, widths, layers, last_norm="bn1", upsample=upsample)
