"""Blocks of pre-activation ResNets, in the usual forms and in DeepMind's (key families PRN and DM-PRN)."""

from dataclasses import replace
from typing import Literal

from torch import Tensor, nn

from robustcli.architectures import ImageShape
from robustcli.architectures.layers import Layers, enlarged
from robustcli.registry.types import Counts4

# DeepMind keeps 0.99 of the running statistics at every step.
_DEEPMIND_MOMENTUM = 0.01


class PreActBlock(nn.Module):
    """Residual block: two 3x3 convolutions, each after normalisation and activation, + shortcut.

    Args:
        projects_raw: a projection on the shortcut reads the raw input of the block, not the activated one.
    """

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, layers: Layers, projects_raw: bool = False) -> None:
        super().__init__()
        self.bn1 = layers.normalisation(inputs)
        self.conv1 = layers.convolution(inputs, width, 3, stride)
        self.bn2 = layers.normalisation(width)
        self.conv2 = layers.convolution(width, width)
        self.gate = layers.gate(width)
        self.shortcut = _projection(inputs, width, stride, layers)
        self.activation, self.activation2 = layers.nonlinearities(2)
        self.projects_raw = projects_raw

    def forward(self, x: Tensor) -> Tensor:
        a = self.activation(self.bn1(x))
        y = self.conv1(a)
        y = self.gate(self.conv2(self.activation2(self.bn2(y))))
        out: Tensor = y + _short(self.shortcut, x, x if self.projects_raw else a)
        return out


class PreActBottleneck(nn.Module):
    """Residual block: 1x1, 3x3 and 1x1 convolutions, each after normalisation and activation, + shortcut.

    Args:
        projects_raw: a projection on the shortcut reads the raw input of the block, not the activated one.
    """

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, layers: Layers, projects_raw: bool) -> None:
        super().__init__()
        outputs = self.expansion * width
        self.bn1 = layers.normalisation(inputs)
        self.conv1 = layers.convolution(inputs, width, 1)
        self.bn2 = layers.normalisation(width)
        self.conv2 = layers.convolution(width, width, 3, stride)
        self.bn3 = layers.normalisation(width)
        self.conv3 = layers.convolution(width, outputs, 1)
        self.gate = layers.gate(outputs)
        self.shortcut = _projection(inputs, outputs, stride, layers)
        self.activation, self.activation2, self.activation3 = layers.nonlinearities(3)
        self.projects_raw = projects_raw

    def forward(self, x: Tensor) -> Tensor:
        a = self.activation(self.bn1(x))
        y = self.conv1(a)
        y = self.conv2(self.activation2(self.bn2(y)))
        y = self.gate(self.conv3(self.activation3(self.bn3(y))))
        out: Tensor = y + _short(self.shortcut, x, x if self.projects_raw else a)
        return out


def _projection(inputs: int, outputs: int, stride: int, layers: Layers) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    # A sequence of one, because public checkpoints call its weight shortcut.0.weight.
    return nn.Sequential(layers.convolution(inputs, outputs, 1, stride))


def _short(projection: nn.Module | None, x: Tensor, projected: Tensor) -> Tensor:
    """Return x, or the projection of `projected` if the shapes differ."""
    if projection is None:
        return x
    out: Tensor = projection(projected)
    return out


class PreActResNet(nn.Module):
    """Pre-activation ResNet: convolution, four stages, normalisation and activation unless form "a", classifier.

    Args:
        block: block of the stages.
        depths: blocks in each of the four stages.
        form: "a", "b" or "c".
        strides: strides of the first block of each stage.
        upsample: factor by which images are enlarged.
    """

    def __init__(
        self,
        shape: ImageShape,
        block: type[PreActBlock] | type[PreActBottleneck],
        depths: Counts4,
        form: Literal["a", "b", "c"],
        layers: Layers,
        *,
        width: int,
        stem_stride: int,
        strides: Counts4,
        upsample: int,
    ) -> None:
        super().__init__()
        projects_raw = {"a": True, "b": False, "c": True}[form]

        def stage(number: int) -> nn.Sequential:
            inner = width * 2**number
            inputs = width if number == 0 else block.expansion * inner // 2
            first = block(inputs, inner, strides[number], layers, projects_raw)
            rest = (block(block.expansion * inner, inner, 1, layers, projects_raw) for _ in range(depths[number] - 1))
            return nn.Sequential(first, *rest)

        outputs = block.expansion * 8 * width
        self.enlarged = enlarged(upsample)
        self.conv1 = layers.convolution(shape.channels, width, 3, stem_stride)
        self.layer1, self.layer2, self.layer3, self.layer4 = map(stage, range(4))
        self.bn = None if form == "a" else layers.normalisation(outputs)
        # Unused without the norm; parameters of an activation would never be trained.
        self.activation = nn.Identity() if form == "a" else layers.nonlinearity()
        self.linear = nn.Linear(outputs, shape.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(self.enlarged(x))))))
        if self.bn is not None:
            x = self.activation(self.bn(x))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


class DeepMindPreActBlock(nn.Module):
    """PreActBlock with "SAME" padding and a 3x3 projection of the raw input on the shortcut."""

    def __init__(self, inputs: int, width: int, stride: int, layers: Layers) -> None:
        super().__init__()
        self.batchnorm_0 = layers.normalisation(inputs)
        self.conv_2d_1 = layers.convolution(inputs, width, 3, stride)
        self.batchnorm_1 = layers.normalisation(width)
        self.conv_2d_2 = layers.convolution(width, width)
        self.gate = layers.gate(width)
        self.shortcut = None if stride == 1 and inputs == width else layers.convolution(inputs, width, 3, stride)
        self.activation, self.activation2 = layers.nonlinearities(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_2d_1(self.activation(self.batchnorm_0(x)))
        y = self.gate(self.conv_2d_2(self.activation2(self.batchnorm_1(y))))
        out: Tensor = y + _short(self.shortcut, x, x)
        return out


class DeepMindPreActResNet(nn.Module):
    """DeepMind's pre-activation ResNet: convolution, four stages, normalisation, activation, average, classifier.

    Args:
        depths: blocks in each of the four stages.
        strides: strides of the first block of each stage.
        upsample: factor by which images are enlarged.
    """

    def __init__(
        self,
        shape: ImageShape,
        depths: Counts4,
        layers: Layers,
        *,
        width: int,
        stem_stride: int,
        strides: Counts4,
        upsample: int,
    ) -> None:
        super().__init__()
        layers = replace(layers, momentum=_DEEPMIND_MOMENTUM, pads_same=True)

        def stage(number: int) -> nn.Sequential:
            inner = width * 2**number
            first = DeepMindPreActBlock(width if number == 0 else inner // 2, inner, strides[number], layers)
            return nn.Sequential(
                first, *(DeepMindPreActBlock(inner, inner, 1, layers) for _ in range(depths[number] - 1))
            )

        self.enlarged = enlarged(upsample)
        self.conv_2d = layers.convolution(shape.channels, width, 3, stem_stride)
        self.layer_0, self.layer_1, self.layer_2, self.layer_3 = map(stage, range(4))
        self.batchnorm = layers.normalisation(8 * width)
        self.activation = layers.nonlinearity()
        self.logits = nn.Linear(8 * width, shape.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer_3(self.layer_2(self.layer_1(self.layer_0(self.conv_2d(self.enlarged(x))))))
        x = self.activation(self.batchnorm(x))
        logits: Tensor = self.logits(x.mean((2, 3)))
        return logits
