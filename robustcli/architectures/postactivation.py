"""Blocks of ResNets, with activation after normalization (key family RN)."""

from torch import Tensor, nn

from robustcli.architectures import ImageShape
from robustcli.architectures.chain import Chain, doubling, named, stages
from robustcli.architectures.layers import Layers, enlarged
from robustcli.architectures.preactivation import PreActBlock
from robustcli.registry.types import Counts4


class BasicBlock(nn.Module):
    """Residual block: act(two 3x3 convolutions + shortcut)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, layers: Layers) -> None:
        super().__init__()
        self.conv1 = layers.convolution(inputs, width, 3, stride)
        self.bn1 = layers.normalization(width)
        self.conv2 = layers.convolution(width, width)
        self.bn2 = layers.normalization(width)
        self.gate = layers.gate(width)
        self.shortcut = normed_shortcut(inputs, width, stride, layers)
        self.activation, self.activation2 = layers.nonlinearities(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.bn1(self.conv1(x)))
        y = self.gate(self.bn2(self.conv2(y)))
        out: Tensor = self.activation2(y + self.shortcut(x))
        return out


class Bottleneck(nn.Module):
    """Residual block: act(1x1, 3x3 and 1x1 convolutions + shortcut), 4 times wider outside; the 3x3 has the stride."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, layers: Layers) -> None:
        super().__init__()
        outputs = self.expansion * width
        self.conv1 = layers.convolution(inputs, width, 1)
        self.bn1 = layers.normalization(width)
        self.conv2 = layers.convolution(width, width, 3, stride)
        self.bn2 = layers.normalization(width)
        self.conv3 = layers.convolution(width, outputs, 1)
        self.bn3 = layers.normalization(outputs)
        self.gate = layers.gate(outputs)
        self.shortcut = normed_shortcut(inputs, outputs, stride, layers)
        self.activation, self.activation2, self.activation3 = layers.nonlinearities(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.bn1(self.conv1(x)))
        y = self.activation2(self.bn2(self.conv2(y)))
        y = self.gate(self.bn3(self.conv3(y)))
        out: Tensor = self.activation3(y + self.shortcut(x))
        return out


def normed_shortcut(inputs: int, outputs: int, stride: int, layers: Layers) -> nn.Module:
    """Return the identity, or a 1x1 convolution and a norm if the shape changes."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(layers.convolution(inputs, outputs, 1, stride), layers.normalization(outputs))


def small_resnet(
    shape: ImageShape,
    block: type[BasicBlock] | type[Bottleneck] | type[PreActBlock],
    depths: Counts4,
    layers: Layers,
    *,
    width: int,
    stem_stride: int,
    strides: Counts4,
    upsample: int,
) -> Chain:
    """ResNet: 3x3 stem, four stages that double the width, global average, linear classifier.

    Args:
        block: block of the stages.
        depths: blocks in each of the four stages.
        strides: strides of the first block of each stage.
        upsample: factor by which images are enlarged.
    """

    def new(inputs: int, width: int, stride: int) -> nn.Module:
        return block(inputs, width, stride, layers)

    return Chain(
        {
            "enlarged": enlarged(upsample),
            "conv1": layers.convolution(shape.channels, width, 3, stem_stride),
            "bn1": layers.normalization(width),
            "activation": layers.nonlinearity(),
            **named("layer", stages(new, width, depths, doubling(width), strides, block.expansion)),
        },
        linear=nn.Linear(block.expansion * 8 * width, shape.classes),
    )
