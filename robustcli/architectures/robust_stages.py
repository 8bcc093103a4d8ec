"""Networks of three stages with separate depths and widths, and the multi-scale block."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.architectures import ImageShape
from robustcli.architectures.chain import Chain, NewBlock, stages
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
        self.bn1 = layers.normalization(inputs)
        self.conv1 = layers.convolution(inputs, SCALES * width, 1)
        self.bn2 = layers.normalization(SCALES * width)
        self.convs = nn.ModuleList(layers.convolution(width, width, 3, stride, CARDINALITY) for _ in range(SCALES - 1))
        self.bns = nn.ModuleList(layers.normalization(width) for _ in range(SCALES - 1))
        self.conv3 = layers.convolution(SCALES * width, outputs, 1)
        self.gate = ResidualSqueezeExcitation(outputs, squeezed_width(planes), layers.normalization(outputs))
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


def residual_stages(
    shape: ImageShape,
    new: NewBlock,
    expansion: int,
    depths: Counts3,
    widths: Counts3,
    layers: Layers,
    *,
    last_norm: str,
    upsample: int,
) -> Chain:
    """A 3x3 convolution, three stages of blocks, norm, activation, global average, classifier.

    Convolutions are initialized by fan-out, the bias of the classifier with 0.

    Args:
        new: makes a block of the stages.
        expansion: output channels of a block per plane.
        depths: blocks in each stage.
        widths: planes of the stages, in units of 16, 32 and 64.
        last_norm: name of the last norm in public checkpoints.
        upsample: factor by which images are enlarged.
    """
    planes = [STEM * 2**number * width for number, width in enumerate(widths)]
    blocks = stages(new, STEM, depths, planes, (1, 2, 2), expansion)
    network = Chain(
        {
            "enlarged": enlarged(upsample),
            "stem_conv": layers.convolution(shape.channels, STEM),
            # Public checkpoints call these weights blocks.0.layer.0.* and so on.
            "blocks": nn.Sequential(*(nn.Sequential(OrderedDict(layer=nn.Sequential(*stage))) for stage in blocks)),
            last_norm: layers.normalization(expansion * planes[-1]),
            "activation": layers.nonlinearity(),
        },
        fc=nn.Linear(expansion * planes[-1], shape.classes),
    )
    draw_by_fan_out(network)
    return network
