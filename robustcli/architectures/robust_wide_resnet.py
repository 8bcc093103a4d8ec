"""WRN-34-R, whose last stage is narrow, and every other depth and width of three wide stages (key family RWRN)."""

from torch import nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.architectures.layers import Layers
from robustcli.architectures.robust_stages import RobustStages
from robustcli.architectures.wide_stages import WideBlock
from robustcli.registry.types import Activation, Count, Counts3, Downsample, Gate, NormLayer


@ARCHITECTURES.register("robust_wide_resnet", smoke={"depths": (1, 1, 1), "widths": (1, 1, 1)})
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
    upsample: Count = 1,
) -> nn.Module:
    """Wide residual network with its own depth and width in each of three stages; the defaults are WRN-34-R.

    The blocks are those of wide_resnet in the form "trades"; equal depths and widths give that network.

    Args:
        depths: blocks in each stage.
        widths: factors on the 16, 32 and 64 channels of the stages.
        activation: the nonlinearity, everywhere.
        norm: batch, group, conv (preconditioned convolutions beside batch norms), or conv_running (conv, evaluated with
            a running mean of the divisors).
        downsample: convolutions that are strided, or average, flc or asap pooling and then a convolution.
        channel_gate: what ends a residual branch: none, se, residual_se or cifs (its probes learn with the defense
            cifs).
        upsample: factor that images are enlarged by, each pixel repeated, before the stem.

    Reference: Huang et al., "Exploring Architectural Ingredients of Adversarially Robust Deep Neural Networks",
        NeurIPS 2021.
    """
    layers = Layers(
        activation=activation, norm=norm, downsample=downsample, channel_gate=channel_gate, classes=shape.classes
    )

    def new_block(inputs: int, planes: int, stride: int) -> nn.Module:
        return WideBlock(inputs, planes, stride, layers)

    return RobustStages(shape, new_block, 1, depths, widths, layers, last_norm="bn1", upsample=upsample)
