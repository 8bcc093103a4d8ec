"""RobustResNet and WRN-A: residual networks with three stages sized by RobustScaling (key family RRN)."""

from typing import Literal

from torch import nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.architectures.layers import Layers
from robustcli.architectures.preactivation import PreActBlock
from robustcli.architectures.robust_scaling import robust_scaling
from robustcli.architectures.robust_stages import RobustResBlock, residual_stages
from robustcli.architectures.weight_names import Settings, Tensors, has_three_stages, three_stages
from robustcli.registry.types import Activation, Counts3, Downsample, NormLayer, Positive, Upsample


def suggested(tensors: Tensors) -> Settings | None:
    """Depths and widths of the stages, and kind of the blocks; the published networks of basic blocks use silu."""
    if not has_three_stages(tensors) or "bn1.weight" in tensors:
        return None
    if "blocks.0.layer.0.conv3.weight" in tensors:
        return three_stages(tensors, "conv3", 4)
    return {**three_stages(tensors, "conv2", 1), "block": "basic", "activation": "silu"}


@ARCHITECTURES.register("robust_resnet", suggested_by="suggested", smoke={"depths": (1, 1, 1), "widths": (1, 1, 1)})
def robust_resnet(
    shape: ImageShape,
    /,
    *,
    budget: Positive | None = None,
    depths: Counts3 = (14, 14, 7),
    widths: Counts3 = (5, 7, 3),
    block: Literal["robust", "basic"] = "robust",
    expands_activated: bool = False,
    activation: Activation = "relu",
    norm: NormLayer = "batch",
    downsample: Downsample = "strided",
    upsample: Upsample = 1,
) -> nn.Module:
    """RobustResNet: deep and narrow, small last stage, multi-scale blocks with residual squeeze-and-excitation.

    The defaults give RobustResNet-A1; the budgets 10, 20 and 40 give A2 to A4. With block: basic they give WRN-A1 to
    WRN-A4. In multi-scale blocks without a projection the first norm is never used, but counts among the published
    weights, as in the published code. The advanced recipe of the paper uses silu. The gate of multi-scale blocks is
    fixed; robust_wide_resnet has basic blocks with any gate.

    Args:
        budget: cost of a 32x32 image in 10^9 multiply-accumulates; RobustScaling then determines depths and widths.
            null: use `depths` and `widths`.
        depths: blocks in each of the three stages.
        widths: factors on the 16, 32 and 64 planes of the three stages.
        block: "robust" is multi-scale, with four times its planes as outputs; "basic" has two 3x3 convolutions, with
            its planes as outputs.
        expands_activated: the first convolution of a robust block reads the activated input, not the raw input as in
            the published code.

    Reference: Huang et al., "Revisiting Residual Networks for Adversarial Robustness", CVPR 2023.
    """
    layers = Layers(activation=activation, norm=norm, downsample=downsample)
    if budget is not None:
        depths, widths = robust_scaling(budget, block)

    def new_block(inputs: int, planes: int, stride: int) -> nn.Module:
        if block == "basic":
            return PreActBlock(inputs, planes, stride, layers, projects_raw=False)
        return RobustResBlock(inputs, planes, stride, layers, expands_activated=expands_activated)

    expansion = PreActBlock.expansion if block == "basic" else RobustResBlock.expansion
    return residual_stages(shape, new_block, expansion, depths, widths, layers, last_norm="norm1", upsample=upsample)
