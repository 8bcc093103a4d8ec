"""RaResNet: bottleneck networks for ImageNet by robust design principles, with squeeze-and-excitation.

The keys of the weights are those of the published networks.
"""

from collections import OrderedDict
from dataclasses import replace
from typing import Literal

from torch import Tensor, nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.architectures.chain import Chain, stages
from robustcli.architectures.layers import Layers
from robustcli.architectures.squeeze import SqueezeExcitation
from robustcli.architectures.weight_names import Settings, Tensors, counts
from robustcli.registry.types import Activation, Count, Counts4, Downsample, NormBeside

# Blocks and channels of the four stages by published name, for a stem of 96 channels.
_NETS: dict[str, tuple[Counts4, Counts4]] = {
    "RaResNet-50": ((5, 8, 13, 1), (288, 576, 1120, 2160)),
    "RaResNet-101": ((7, 11, 18, 1), (336, 672, 1328, 2624)),
    "RaWRN-101-2": ((7, 11, 18, 1), (512, 1024, 2016, 4032)),
}
_STEM = 96
# A block has a quarter of its channels inside; its 3x3 convolution has two groups.
_BOTTLENECK, _GROUPS = 4, 2
# Channels inside squeeze-and-excitation, as a share of the input channels of the block.
_SQUEEZE = 0.25
_CLASSIFIER_SPREAD = 0.01


class Block(nn.Module):
    """Residual block: act(1x1, act, grouped 3x3, norm, act, squeeze-and-excitation, 1x1, norm + shortcut).

    The first convolution has no norm; the stride is on the 3x3.
    """

    def __init__(self, inputs: int, width: int, stride: int, layers: Layers) -> None:
        super().__init__()
        inner = width // _BOTTLENECK
        keeps = stride == 1 and inputs == width
        self.proj = None if keeps else nn.Sequential(*layers.normed(inputs, width, 1, stride))
        self.F = nn.Sequential(
            OrderedDict(
                a=nn.Sequential(layers.convolution(inputs, inner, 1), nn.Identity(), layers.nonlinearity()),
                b=nn.Sequential(*layers.normed(inner, inner, 3, stride, _GROUPS), layers.nonlinearity()),
                se=SqueezeExcitation(inner, max(1, round(_SQUEEZE * inputs))),
                c=nn.Sequential(*layers.normed(inner, width, 1)),
            )
        )
        self.last_activation = layers.nonlinearity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last_activation(self.F(x) + (x if self.proj is None else self.proj(x)))
        return out


def suggested(tensors: Tensors) -> Settings | None:
    """Network and width; the stages of RaWRN-101-2 are wider than its stem suggests."""
    if not {"stages.stage1.stage1-block0.F.a.0.weight", "stem.stem.stem.0.weight"} <= set(tensors):
        return None
    depths = counts(tensors, r"stages\.stage%d\.stage\d-block(\d+)\.F\.a\.0\.weight", (1, 2, 3, 4))
    stem = tensors["stem.stem.stem.0.weight"].shape[0]
    is_wide = tensors["stages.stage1.stage1-block0.F.c.0.weight"].shape[0] > 4 * stem
    nets = {(5, 8, 13, 1): "RaResNet-50", (7, 11, 18, 1): "RaWRN-101-2" if is_wide else "RaResNet-101"}
    width: Settings = {} if stem == _STEM else {"width": stem}
    return {"net": nets[depths], **width} if depths in nets else None


@ARCHITECTURES.register(
    "robust_arch_resnet50",
    added={"norm": "batch", "downsample": "strided"},
    fixed={"net": "RaResNet-50"},
    suggested_by="suggested",
    smoke={"width": 16},
)
@ARCHITECTURES.register(
    "robust_arch_resnet101",
    added={"norm": "batch", "downsample": "strided"},
    fixed={"net": "RaResNet-101"},
    suggested_by="suggested",
    smoke={"width": 16},
)
@ARCHITECTURES.register(
    "robust_arch_wide_resnet101_2",
    added={"norm": "batch", "downsample": "strided"},
    fixed={"net": "RaWRN-101-2"},
    suggested_by="suggested",
    smoke={"width": 16},
)
def robust_arch_resnet(
    shape: ImageShape,
    /,
    *,
    net: Literal["RaResNet-50", "RaResNet-101", "RaWRN-101-2"],
    activation: Activation = "silu",
    stem_activation: Activation = "relu",
    norm: NormBeside = "batch",
    downsample: Downsample = "strided",
    width: Count = 96,
    stem_stride: Literal[1, 2] = 2,
    strides: Counts4 = (2, 2, 2, 2),
) -> nn.Module:
    """{net} for ImageNet: grouped bottlenecks with squeeze-and-excitation, a stem without a pool, a short last stage.

    The first 1x1 convolution of a block has no norm. Squeeze-and-excitation follows the 3x3 convolution and is a
    quarter as wide inside as the input of the block, the only interpretation that gives the published 104,065,776
    parameters of RaWRN-101-2. All convolutions are initialized by fan-out, the classifier from N(0, 0.01^2). The gate
    is fixed, and norm: conv is not available, because it needs a norm after every convolution.

    Args:
        net: published name, which determines depths and widths.
        activation: nonlinearity of the blocks, except inside squeeze-and-excitation.
        stem_activation: nonlinearity of the stem: silu in the text of the paper, relu in its code and published
            weights.
        width: channels of the stem; those of the stages are proportional to it, in multiples of 8, and as published
            for 96.
        stem_stride: stride of the 7x7 convolution.
        strides: strides of the first block of each stage; the defaults and the stem shrink images 32 times.

    Reference: Peng et al., "Robust Principles: Architectural Design Principles for Adversarially Robust CNNs", BMVC
        2023.
    """
    depths, published = _NETS[net]
    # Channels inside a block are divided into two groups.
    whole = _BOTTLENECK * _GROUPS
    widths = [max(1, round(channels * width / _STEM / whole)) * whole for channels in published]
    layers = Layers(activation=activation, norm=norm, downsample=downsample)

    def new(inputs: int, width: int, stride: int) -> nn.Module:
        return Block(inputs, width, stride, layers)

    # Public checkpoints call these weights stages.stage1.stage1-block0.F.a.0.weight and so on.
    trunk: OrderedDict[str, nn.Module] = OrderedDict()
    for number, blocks in enumerate(stages(new, width, depths, widths, strides), start=1):
        names = (f"stage{number}-block{place}" for place in range(len(blocks)))
        trunk[f"stage{number}"] = nn.Sequential(OrderedDict(zip(names, blocks, strict=True)))
    of_stem = replace(layers, activation=stem_activation)
    first = nn.Sequential(*of_stem.normed(shape.channels, width, 7, stem_stride), of_stem.nonlinearity())
    # ... and these stem.stem.stem.0.weight.
    stem = nn.Sequential(OrderedDict(stem=nn.Sequential(OrderedDict(stem=first))))
    fc = nn.Linear(widths[-1], shape.classes)
    network = Chain({"stem": stem, "stages": nn.Sequential(trunk)}, fc=fc)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    nn.init.normal_(fc.weight, 0, _CLASSIFIER_SPREAD)
    nn.init.zeros_(fc.bias)
    return network
