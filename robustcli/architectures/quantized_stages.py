"""Parts of RegNets: grouped bottleneck blocks, and stages with widths on a quantized line.

The keys of the weights are those of torchvision.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor, nn

from robustcli.architectures import ImageShape
from robustcli.architectures.chain import Chain, stages
from robustcli.architectures.layers import Layers, enlarged
from robustcli.architectures.squeeze import SqueezeExcitation
from robustcli.architectures.wide_stages import draw_by_fan_out

# Widths on the line are multiples of this.
_QUANTUM = 8
_CLASSIFIER_SPREAD = 0.01


@dataclass(frozen=True)
class Stages:
    """Depths and widths of the stages of a RegNet.

    Args:
        depths: blocks of each stage.
        widths: channels of each stage.
        group_width: channels of a group in the 3x3 convolutions.
        squeeze: channels inside squeeze-and-excitation, as a share of the input channels of the block; 0: none.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    group_width: int
    squeeze: float = 0.0


def on_the_line(depth: int, w0: float, wa: float, wm: float, group_width: int, squeeze: float = 0.0) -> Stages:
    """Return the stages of the rule: block j has the width w0 + wa j, rounded to the nearest w0 times a power of wm.

    Blocks of the same width form a stage. Widths are rounded to multiples of 8, then to whole groups; a group is never
    wider than its stage.
    """
    powers = [round(math.log((w0 + wa * j) / w0) / math.log(wm)) for j in range(depth)]
    line = [max(1, round(w0 * wm**power / _QUANTUM)) * _QUANTUM for power in powers]
    widths = list(dict.fromkeys(line))
    depths = tuple(line.count(width) for width in widths)
    return Stages(depths, tuple(whole_groups(width, group_width) for width in widths), group_width, squeeze)


def whole_groups(width: int, group_width: int) -> int:
    """Return the nearest width that is a multiple of the group width; a group is never wider than the stage.

    As in the paper; torchvision rounds up where this loses more than a tenth, as at the start of its regnet_y_8gf.
    """
    group = min(group_width, width)
    return max(1, math.floor(width / group + 0.5)) * group


class Block(nn.Module):
    """Residual block of constant width: act(1x1, grouped 3x3, squeeze-and-excitation if any, 1x1 + shortcut)."""

    def __init__(self, inputs: int, width: int, stride: int, group_width: int, squeeze: float, layers: Layers) -> None:
        super().__init__()
        groups = width // min(group_width, width)
        keeps = stride == 1 and inputs == width
        self.proj = None if keeps else nn.Sequential(*layers.normed(inputs, width, 1, stride))
        self.f = nn.Sequential(
            OrderedDict(
                a=nn.Sequential(*layers.normed(inputs, width, 1), layers.nonlinearity()),
                b=nn.Sequential(*layers.normed(width, width, 3, stride, groups), layers.nonlinearity()),
                se=SqueezeExcitation(width, max(1, round(squeeze * inputs))) if squeeze else nn.Identity(),
                c=nn.Sequential(*layers.normed(width, width, 1)),
            )
        )
        self.gate = layers.gate(width)
        self.activation = layers.nonlinearity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.gate(self.f(x)) + (x if self.proj is None else self.proj(x)))
        return out


def network_of(
    shape: ImageShape,
    chosen: Stages,
    layers: Layers,
    *,
    stem: int,
    stem_stride: int,
    strides: tuple[int, ...],
    upsample: int,
) -> Chain:
    """RegNet: stem, stages, global average, linear classifier.

    Args:
        stem: channels of the first convolution.
        strides: strides of the first block of each stage.
        upsample: factor by which images are enlarged.
    """

    def new(inputs: int, width: int, stride: int) -> nn.Module:
        return Block(inputs, width, stride, chosen.group_width, chosen.squeeze, layers)

    # Public checkpoints call these weights trunk_output.block1.block1-0.f.a.0.weight and so on.
    trunk: OrderedDict[str, nn.Module] = OrderedDict()
    for number, blocks in enumerate(stages(new, stem, chosen.depths, chosen.widths, strides), start=1):
        names = (f"block{number}-{place}" for place in range(len(blocks)))
        trunk[f"block{number}"] = nn.Sequential(OrderedDict(zip(names, blocks, strict=True)))
    first = nn.Sequential(*layers.normed(shape.channels, stem, 3, stem_stride), layers.nonlinearity())
    fc = nn.Linear(chosen.widths[-1], shape.classes)
    network = Chain({"enlarged": enlarged(upsample), "stem": first, "trunk_output": nn.Sequential(trunk)}, fc=fc)
    draw_by_fan_out(network)
    nn.init.normal_(fc.weight, 0, _CLASSIFIER_SPREAD)
    return network
