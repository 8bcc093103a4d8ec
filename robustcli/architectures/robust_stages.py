"""Three stages whose depths and widths are set one by one, the multi-scale block, and how both grow with a budget."""

import math
from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.architectures import ImageShape
from robustcli.architectures.layers import Layers, enlarged
from robustcli.architectures.squeeze import ResidualSqueezeExcitation
from robustcli.architectures.wide_stages import draw_by_fan_out
from robustcli.fields import Counts3

_STEM = 16
# Of the multi-scale block: chunks, width of a chunk for 160 planes and per group, groups, reduction of its gate.
_SCALES = 8
_BASE_WIDTH = 10
_CARDINALITY = 4
_SQUEEZE = 64

# Published by the budgets that they were made for, in 10^9 multiply-accumulates of a 32x32 image: depths, widths.
_PUBLISHED: dict[float, tuple[Counts3, Counts3]] = {
    5: ((14, 14, 7), (5, 7, 3)),
    10: ((17, 17, 8), (7, 9, 4)),
    20: ((22, 22, 11), (8, 11, 5)),
    40: ((27, 28, 13), (10, 14, 6)),
}


def robust_scaling(budget: float) -> tuple[Counts3, Counts3]:
    """Depths and widths of three stages for a budget: stages are about 2:2:1 deep, 2:2.5:1 wide, and 7:3 in sum.

    How the paper rounds is not published, and no rounding of these ratios gives its four networks. So they are
    taken as they are at their budgets; between two of them every number grows evenly with the logarithm of the
    budget, and beyond with its cube root, as cost grows with depth and the square of width. No number falls
    when the budget rises, and the cost stays within a fifth of it; widths are small integers, so not nearer.

    Args:
        budget: about 10^9 multiply-accumulates of a 32x32 image; 5, 10, 20 and 40 are A1, A2, A3 and A4.

    Reference: Huang et al., "Revisiting Residual Networks for Adversarial Robustness", CVPR 2023.
    """
    sizes = sorted(_PUBLISHED)
    if not sizes[0] <= budget <= sizes[-1]:
        nearest = sizes[0] if budget < sizes[0] else sizes[-1]
        growth = (budget / nearest) ** (1 / 3)
        depths, widths = _PUBLISHED[nearest]
        return _rounded([growth * depth for depth in depths]), _rounded([growth * width for width in widths])
    lower = max(size for size in sizes if size <= budget)
    upper = min(size for size in sizes if size >= budget)
    share = 0.0 if lower == upper else math.log(budget / lower) / math.log(upper / lower)
    depths, widths = (
        _rounded([(1 - share) * one + share * other for one, other in zip(low, high, strict=True)])
        for low, high in zip(_PUBLISHED[lower], _PUBLISHED[upper], strict=True)
    )
    return depths, widths


def _rounded(values: list[float]) -> Counts3:
    first, second, third = (max(1, math.floor(value + 0.5)) for value in values)
    return first, second, third


class RobustResBlock(nn.Module):
    """A pre-activation bottleneck whose 3x3 part is split into chunks, each of which also sees the one before it.

    The expanding convolution reads the block's input itself, as in the published code, so that in blocks which
    project nothing the first norm is never used and never learns; `expands_activated` gives it the activated input.
    """

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int, layers: Layers, *, expands_activated: bool) -> None:
        super().__init__()
        outputs = self.expansion * planes
        width = max(1, planes * _BASE_WIDTH // 160) * _CARDINALITY
        self.bn1 = layers.normalisation(inputs)
        self.conv1 = layers.convolution(inputs, _SCALES * width, 1)
        self.bn2 = layers.normalisation(_SCALES * width)
        self.convs = nn.ModuleList(
            layers.convolution(width, width, 3, stride, _CARDINALITY) for _ in range(_SCALES - 1)
        )
        self.bns = nn.ModuleList(layers.normalisation(width) for _ in range(_SCALES - 1))
        self.conv3 = layers.convolution(_SCALES * width, outputs, 1)
        self.gate = ResidualSqueezeExcitation(outputs, max(1, outputs // _SQUEEZE), layers.normalisation(outputs))
        keeps = stride == 1 and inputs == outputs
        self.shortcut = None if keeps else nn.Sequential(layers.convolution(inputs, outputs, 1, stride))
        self.activation = layers.nonlinearity()
        self.stride = stride
        self.expands_activated = expands_activated

    def forward(self, x: Tensor) -> Tensor:
        uses_norm = self.expands_activated or self.shortcut is not None
        a = self.activation(self.bn1(x)) if uses_norm else x
        u = self.activation(self.bn2(self.conv1(a if self.expands_activated else x)))
        *chunks, last = u.chunk(_SCALES, 1)
        outputs: list[Tensor] = []
        for chunk, conv, bn in zip(chunks, self.convs, self.bns, strict=True):
            z = chunk + outputs[-1] if outputs and self.stride == 1 else chunk
            outputs.append(self.activation(bn(conv(z))))
        outputs.append(last if self.stride == 1 else F.avg_pool2d(last, 3, self.stride, 1))
        m = self.conv3(torch.cat(outputs, 1))
        out: Tensor = self.gate(m) + (x if self.shortcut is None else self.shortcut(a))
        return out


# (inputs, planes, stride) -> a block that puts out `expansion` times `planes` channels.
Block = Callable[[int, int, int], nn.Module]


class RobustStages(nn.Module):
    """A 3x3 convolution, three stages of blocks, norm, activation, global average, classifier.

    Convolutions are drawn by fan-out, and the classifier's bias is 0 at the start.

    Args:
        block: what the stages consist of.
        expansion: channels that a block puts out, in planes.
        depths: blocks in each stage.
        widths: planes of the stages, in units of 16, 32 and 64.
        last_norm: name of the last norm, by which public checkpoints know it.
        upsample: factor that the images are enlarged by.
    """

    def __init__(
        self,
        shape: ImageShape,
        block: Block,
        expansion: int,
        depths: Counts3,
        widths: Counts3,
        layers: Layers,
        *,
        last_norm: str,
        upsample: int,
    ) -> None:
        super().__init__()
        inputs = _STEM
        stages = []
        for number, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            planes = _STEM * 2**number * width
            blocks = []
            for i in range(depth):
                blocks.append(block(inputs, planes, 2 if number > 0 and i == 0 else 1))
                inputs = expansion * planes
            # Public checkpoints call these weights blocks.0.layer.0.* and so on.
            stages.append(nn.Sequential(OrderedDict(layer=nn.Sequential(*blocks))))
        self.enlarged = enlarged(upsample)
        self.stem_conv = layers.convolution(shape.channels, _STEM)
        self.blocks = nn.Sequential(*stages)
        self.last_norm = last_norm
        self.add_module(last_norm, layers.normalisation(inputs))
        self.activation = layers.nonlinearity()
        self.fc = nn.Linear(inputs, shape.classes)
        draw_by_fan_out(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem_conv(self.enlarged(x)))
        x = self.activation(self.get_submodule(self.last_norm)(x))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits
