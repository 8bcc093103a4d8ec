"""Networks of three stages with separate depths and widths, and the multi-scale block."""

from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.architectures import ImageShape
from robustcli.architectures.layers import Layers, enlarged
from robustcli.architectures.robust_scaling import CARDINALITY, EXPANSION, SCALES, STEM, chunk_width, squeezed_width
from robustcli.architectures.squeeze import ResidualSqueezeExcitation
from robustcli.architectures.wide_stages import draw_by_fan_out
from robustcli.registry.types import Counts3


class RobustResBlock(nn.Module):
    """Pre-activation bottleneck with its 3x3 part in chunks, each of which also reads the output of the previous one.

    The first convolution reads the raw input of the block, as in the published code. So in blocks without a projection
    the first norm is never used or trained. With `expands_activated` it reads the activated input.
    """

    expansion = EXPANSION

    def __init__(self, inputs: int, planes: int, stride: int, layers: Layers, *, expands_activated: bool) -> None:
        super().__init__()
        outputs = self.expansion * planes
        width = chunk_width(planes)
        self.bn1 = layers.normalisation(inputs)
        self.conv1 = layers.convolution(inputs, SCALES * width, 1)
        self.bn2 = layers.normalisation(SCALES * width)
        self.convs = nn.ModuleList(layers.convolution(width, width, 3, stride, CARDINALITY) for _ in range(SCALES - 1))
        self.bns = nn.ModuleList(layers.normalisation(width) for _ in range(SCALES - 1))
        self.conv3 = layers.convolution(SCALES * width, outputs, 1)
        self.gate = ResidualSqueezeExcitation(outputs, squeezed_width(planes), layers.normalisation(outputs))
        keeps = stride == 1 and inputs == outputs
        self.shortcut = None if keeps else nn.Sequential(layers.convolution(inputs, outputs, 1, stride))
        self.activation, self.activation2, *chunks = layers.nonlinearities(1 + SCALES)
        self.activations = nn.ModuleList(chunks)
        self.stride = stride
        self.expands_activated = expands_activated

    def forward(self, x: Tensor) -> Tensor:
        uses_norm = self.expands_activated or self.shortcut is not None
        a = self.activation(self.bn1(x)) if uses_norm else x
        u = self.activation2(self.bn2(self.conv1(a if self.expands_activated else x)))
        *chunks, last = u.chunk(SCALES, 1)
        outputs: list[Tensor] = []
        for chunk, conv, bn, activation in zip(chunks, self.convs, self.bns, self.activations, strict=True):
            z = chunk + outputs[-1] if outputs and self.stride == 1 else chunk
            outputs.append(activation(bn(conv(z))))
        outputs.append(last if self.stride == 1 else F.avg_pool2d(last, 3, self.stride, 1))
        m = self.conv3(torch.cat(outputs, 1))
        out: Tensor = self.gate(m) + (x if self.shortcut is None else self.shortcut(a))
        return out


# (inputs, planes, stride) -> a block with `expansion` times `planes` output channels.
Block = Callable[[int, int, int], nn.Module]


class RobustStages(nn.Module):
    """A 3x3 convolution, three stages of blocks, norm, activation, global average, classifier.

    Convolutions are initialised by fan-out, the bias of the classifier with 0.

    Args:
        block: block of the stages.
        expansion: output channels of a block per plane.
        depths: blocks in each stage.
        widths: planes of the stages, in units of 16, 32 and 64.
        last_norm: name of the last norm in public checkpoints.
        upsample: factor by which images are enlarged.
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
        inputs = STEM
        stages = []
        for number, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            planes = STEM * 2**number * width
            blocks = []
            for i in range(depth):
                blocks.append(block(inputs, planes, 2 if number > 0 and i == 0 else 1))
                inputs = expansion * planes
            # Public checkpoints call these weights blocks.0.layer.0.* and so on.
            stages.append(nn.Sequential(OrderedDict(layer=nn.Sequential(*blocks))))
        self.enlarged = enlarged(upsample)
        self.stem_conv = layers.convolution(shape.channels, STEM)
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
