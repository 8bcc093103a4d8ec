"""ResNets with a stem for small images: activation after every normalisation (key family RN)."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from robustcli.architectures import ACTIVATIONS, ARCHITECTURES, ImageShape
from robustcli.architectures.convolutions import conv1x1, conv3x3
from robustcli.fields import Activation, Count


class BasicBlock(nn.Module):
    """act(two 3x3 convolutions + shortcut)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(inputs, width, stride)
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: Tensor = self.activation(y + self.shortcut(x))
        return out


class Bottleneck(nn.Module):
    """act(1x1, 3x3 and 1x1 convolutions + shortcut), four times wider outside; the stride is on the 3x3."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        outputs = self.expansion * width
        self.conv1 = conv1x1(inputs, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, outputs)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride)
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.bn1(self.conv1(x)))
        y = self.activation(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        out: Tensor = self.activation(y + self.shortcut(x))
        return out


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """Stem, four stages that double the width and halve the resolution, global average, linear classifier.

    Args:
        block: what the stages consist of.
        depths: blocks in each of the four stages.
    """

    def __init__(
        self,
        shape: ImageShape,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        activation: Activation,
        width: int,
        stem_stride: int,
    ) -> None:
        super().__init__()
        new_activation = ACTIVATIONS[activation]

        def stage(inputs: int, width: int, depth: int, stride: int) -> nn.Sequential:
            first = block(inputs, width, stride, new_activation)
            rest = [block(block.expansion * width, width, 1, new_activation) for _ in range(depth - 1)]
            return nn.Sequential(first, *rest)

        self.conv1 = conv3x3(shape.channels, width, stem_stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.activation = new_activation()
        self.layer1 = stage(width, width, depths[0], 1)
        self.layer2 = stage(block.expansion * width, 2 * width, depths[1], 2)
        self.layer3 = stage(block.expansion * 2 * width, 4 * width, depths[2], 2)
        self.layer4 = stage(block.expansion * 4 * width, 8 * width, depths[3], 2)
        self.linear = nn.Linear(block.expansion * 8 * width, shape.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


@ARCHITECTURES.register("resnet18", smoke={"width": 4})
def resnet18(
    shape: ImageShape, /, *, activation: Activation = "relu", width: Count = 64, stem_stride: Literal[1, 2] = 1
) -> nn.Module:
    """ResNet-18 for small images: eight blocks of two 3x3 convolutions, activation last.

    The stem is a 3x3 convolution without pooling, so 32 pixels become 4 before the global average.

    Args:
        activation: the nonlinearity, everywhere.
        width: channels of the stem and the first stage; each later stage doubles it.
        stem_stride: 2 halves the resolution at once, for about a quarter of the cost.

    Reference: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.
    """
    return ResNet(shape, BasicBlock, (2, 2, 2, 2), activation, width, stem_stride)


@ARCHITECTURES.register("resnet34", smoke={"width": 4})
def resnet34(
    shape: ImageShape, /, *, activation: Activation = "relu", width: Count = 64, stem_stride: Literal[1, 2] = 1
) -> nn.Module:
    """ResNet-34 for small images: sixteen blocks of two 3x3 convolutions, activation last.

    The stem is a 3x3 convolution without pooling, so 32 pixels become 4 before the global average.

    Args:
        activation: the nonlinearity, everywhere.
        width: channels of the stem and the first stage; each later stage doubles it.
        stem_stride: 2 halves the resolution at once, for about a quarter of the cost.

    Reference: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.
    """
    return ResNet(shape, BasicBlock, (3, 4, 6, 3), activation, width, stem_stride)


@ARCHITECTURES.register("resnet50", smoke={"width": 4})
def resnet50(
    shape: ImageShape, /, *, activation: Activation = "relu", width: Count = 64, stem_stride: Literal[1, 2] = 1
) -> nn.Module:
    """ResNet-50 for small images: sixteen bottlenecks, activation last.

    The stem is a 3x3 convolution without pooling, so 32 pixels become 4 before the global average.

    Args:
        activation: the nonlinearity, everywhere.
        width: channels of the stem and the first stage; each later stage doubles it.
        stem_stride: 2 halves the resolution at once, for about a quarter of the cost.

    Reference: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.
    """
    return ResNet(shape, Bottleneck, (3, 4, 6, 3), activation, width, stem_stride)


@ARCHITECTURES.register("resnet101", smoke={"width": 4})
def resnet101(
    shape: ImageShape, /, *, activation: Activation = "relu", width: Count = 64, stem_stride: Literal[1, 2] = 1
) -> nn.Module:
    """ResNet-101 for small images: thirty-three bottlenecks, activation last.

    The stem is a 3x3 convolution without pooling, so 32 pixels become 4 before the global average.

    Args:
        activation: the nonlinearity, everywhere.
        width: channels of the stem and the first stage; each later stage doubles it.
        stem_stride: 2 halves the resolution at once, for about a quarter of the cost.

    Reference: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.
    """
    return ResNet(shape, Bottleneck, (3, 4, 23, 3), activation, width, stem_stride)


@ARCHITECTURES.register("resnet152", smoke={"width": 4})
def resnet152(
    shape: ImageShape, /, *, activation: Activation = "relu", width: Count = 64, stem_stride: Literal[1, 2] = 1
) -> nn.Module:
    """ResNet-152 for small images: fifty bottlenecks, activation last.

    The stem is a 3x3 convolution without pooling, so 32 pixels become 4 before the global average.

    Args:
        activation: the nonlinearity, everywhere.
        width: channels of the stem and the first stage; each later stage doubles it.
        stem_stride: 2 halves the resolution at once, for about a quarter of the cost.

    Reference: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.
    """
    return ResNet(shape, Bottleneck, (3, 8, 36, 3), activation, width, stem_stride)
