"""RobustResNet and WRN-A: three stages sized by RobustScaling (the latter: key family RRN)."""

from typing import Literal

from torch import nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.architectures.layers import Layers
from robustcli.architectures.preactivation import PreActBlock
from robustcli.architectures.robust_scaling import robust_scaling
from robustcli.architectures.robust_stages import RobustResBlock, RobustStages
from robustcli.registry.types import Activation, Count, Counts3, Downsample, NormLayer, Positive


@ARCHITECTURES.register("robust_resnet", smoke={"depths": (1, 1, 1), "widths": (1, 1, 1)})
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
    upsample: Count = 1,
) -> nn.Module:
    """RobustResNet: deep and narrow, its last stage small, multi-scale blocks with residual squeeze-and-excitation.

    The defaults are RobustResNet-A1; A2 to A4 are the budgets 10, 20 and 40, and with block: basic they are WRN-A1
    to WRN-A4. In multi-scale blocks that project nothing, the first norm is part of the published count of
    weights and, as published, never used. The advanced recipe of the paper uses silu. The gate is a part of the block;
    robust_wide_resnet has basic blocks with any.

    Args:
        budget: about 10^9 multiply-accumulates of a 32x32 image: depths and widths are then those of RobustScaling
            and not the settings, at a cost near the budget; null: the settings.
        depths: blocks in each of the three stages.
        widths: factors on the 16, 32 and 64 planes of the three stages.
        block: robust puts out four times its planes; basic has two 3x3 convolutions and puts out its planes.
        expands_activated: whether the first convolution of a robust block reads the activated input, and not the
            input itself as in the published code.
        activation: the nonlinearity, everywhere.
        norm: batch, group, conv (preconditioned convolutions beside batch norms), or conv_running (conv, evaluated with
            a running mean of the divisors).
        downsample: convolutions that are strided, or average, flc or asap pooling and then a convolution.
        upsample: factor that images are enlarged by, each pixel repeated, before the stem.

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
    return RobustStages(shape, new_block, expansion, depths, widths, layers, last_norm="norm1", upsample=upsample)
