"""Blocks of ResNets, with activation after normalisation (key family RN)."""

from torch import Tensor, nn

from robustcli.architectures import ImageShape
from robustcli.architectures.layers import Layers, enlarged
from robustcli.architectures.preactivation import PreActBlock
from robustcli.registry.types import Counts4


class BasicBlock(nn.Module):
    """Residual block: act(two 3x3 convolutions + shortcut)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, layers: Layers) -> None:
        super().__init__()
        self.conv1 = layers.convolution(inputs, width, 3, stride)
        self.bn1 = layers.normalisation(width)
        self.conv2 = layers.convolution(width, width)
        self.bn2 = layers.normalisation(width)
        self.gate = layers.gate(width)
        self.shortcut = _shortcut(inputs, width, stride, layers)
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
        self.bn1 = layers.normalisation(width)
        self.conv2 = layers.convolution(width, width, 3, stride)
        self.bn2 = layers.normalisation(width)
        self.conv3 = layers.convolution(width, outputs, 1)
        self.bn3 = layers.normalisation(outputs)
        self.gate = layers.gate(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride, layers)
        self.activation, self.activation2, self.activation3 = layers.nonlinearities(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.bn1(self.conv1(x)))
        y = self.activation2(self.bn2(self.conv2(y)))
        y = self.gate(self.bn3(self.conv3(y)))
        out: Tensor = self.activation3(y + self.shortcut(x))
        return out


def _shortcut(inputs: int, outputs: int, stride: int, layers: Layers) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(layers.convolution(inputs, outputs, 1, stride), layers.normalisation(outputs))


class ResNet(nn.Module):
    """ResNet: stem, four stages that double the width, global average, linear classifier.

    Args:
        block: block of the stages.
        depths: blocks in each of the four stages.
        strides: strides of the first block of each stage.
        upsample: factor by which images are enlarged.
    """

    def __init__(
        self,
        shape: ImageShape,
        block: type[BasicBlock] | type[Bottleneck] | type[PreActBlock],
        depths: Counts4,
        layers: Layers,
        *,
        width: int,
        stem_stride: int,
        strides: Counts4,
        upsample: int,
    ) -> None:
        super().__init__()

        def stage(number: int) -> nn.Sequential:
            inner = width * 2**number
            inputs = width if number == 0 else block.expansion * inner // 2
            first = block(inputs, inner, strides[number], layers)
            rest = [block(block.expansion * inner, inner, 1, layers) for _ in range(depths[number] - 1)]
            return nn.Sequential(first, *rest)

        self.enlarged = enlarged(upsample)
        self.conv1 = layers.convolution(shape.channels, width, 3, stem_stride)
        self.bn1 = layers.normalisation(width)
        self.activation = layers.nonlinearity()
        self.layer1, self.layer2, self.layer3, self.layer4 = map(stage, range(4))
        self.linear = nn.Linear(block.expansion * 8 * width, shape.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.bn1(self.conv1(self.enlarged(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits
