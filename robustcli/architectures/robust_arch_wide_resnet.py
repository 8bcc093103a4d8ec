"""RaWRN: a wide residual network by robust design principles, with squeeze-and-excitation (key family RA-WRN)."""

from torch import nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.architectures.layers import Layers
from robustcli.architectures.weight_names import Settings, Tensors, counts
from robustcli.architectures.wide_stages import deepmind_network, draw_by_fan_out
from robustcli.registry.types import Activation, Count, Counts3, Downsample, NormBeside

_REDUCTION = 4
_STRIDES = (1, 2, 2)


def suggested(tensors: Tensors) -> Settings | None:
    """Depths and widths of the stages, and width of the stem."""
    if not {"layer.0.block.0.se.fc1.weight", "init_conv.weight"} <= set(tensors):
        return None
    widths = [tensors[f"layer.{stage}.block.0.conv_0.weight"].shape[0] for stage in (0, 1, 2)]
    depths = counts(tensors, r"layer\.%d\.block\.(\d+)\.conv_0\.weight", (0, 1, 2))
    return {"depths": depths, "widths": widths, "stem": tensors["init_conv.weight"].shape[0]}


@ARCHITECTURES.register(
    "robust_arch_wide_resnet",
    added={"norm": "batch", "downsample": "strided"},
    suggested_by="suggested",
    smoke={"depths": (1, 1, 1), "widths": (32, 32, 32), "stem": 4},
)
def robust_arch_wide_resnet(
    shape: ImageShape,
    /,
    *,
    depths: Counts3 = (30, 31, 10),
    widths: Counts3 = (216, 432, 864),
    stem: Count = 96,
    activation: Activation = "silu",
    norm: NormBeside = "batch",
    downsample: Downsample = "strided",
) -> nn.Module:
    """RaWRN: DeepMind's wide residual network with a wide stem, a short last stage and squeeze-and-excitation.

    The defaults give RaWRN-70-16. Every residual branch ends with squeeze-and-excitation, with a quarter of the
    channels inside. For other gates use wide_resnet in the form "deepmind". Convolutions are initialized by fan-out.

    Args:
        depths: blocks in each of the three stages.
        widths: channels of the stages.
        stem: channels of the first convolution.
        activation: nonlinearity of all layers, except inside the gates.
        norm: batch or group; convolutions with one-sided padding cannot be preconditioned.

    Reference: Peng et al., "Robust Principles: Architectural Design Principles for Adversarially Robust CNNs", BMVC
        2023.
    """
    layers = Layers(activation=activation, norm=norm, downsample=downsample, channel_gate="se", reduction=_REDUCTION)
    network = deepmind_network(shape, depths, widths, layers, stem=stem, stem_stride=1, strides=_STRIDES, upsample=1)
    draw_by_fan_out(network)
    return network
