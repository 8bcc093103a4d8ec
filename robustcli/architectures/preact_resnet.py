"""Pre-activation ResNets for small images, in the four forms that are in circulation (PRN, DM-PRN).

Forms "a", "b" and "c" share most keys, and "b" and "c" all of them: weights trained as one load into the
other without an error and classify worse. The form is therefore part of the spec.
"""

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from robustcli.architectures import ACTIVATIONS, ARCHITECTURES, ImageShape
from robustcli.architectures.convolutions import conv1x1, conv3x3, same_conv3x3
from robustcli.fields import Activation, Count

# DeepMind keeps 0.99 of the running statistics at every step.
_DEEPMIND_MOMENTUM = 0.01


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after normalisation and activation, + shortcut.

    Args:
        projects_raw: whether a projecting shortcut sees the block's input itself, or normalised and activated.
    """

    expansion = 1

    def __init__(
        self, inputs: int, width: int, stride: int, activation: Callable[[], nn.Module], projects_raw: bool
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.shortcut = _projection(inputs, width, stride)
        self.activation = activation()
        self.projects_raw = projects_raw

    def forward(self, x: Tensor) -> Tensor:
        a = self.activation(self.bn1(x))
        y = self.conv1(a)
        y = self.conv2(self.activation(self.bn2(y)))
        out: Tensor = y + _short(self.shortcut, x, x if self.projects_raw else a)
        return out


class PreActBottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, each after normalisation and activation, + shortcut.

    Args:
        projects_raw: whether a projecting shortcut sees the block's input itself, or normalised and activated.
    """

    expansion = 4

    def __init__(
        self, inputs: int, width: int, stride: int, activation: Callable[[], nn.Module], projects_raw: bool
    ) -> None:
        super().__init__()
        outputs = self.expansion * width
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv1x1(inputs, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, outputs)
        self.shortcut = _projection(inputs, outputs, stride)
        self.activation = activation()
        self.projects_raw = projects_raw

    def forward(self, x: Tensor) -> Tensor:
        a = self.activation(self.bn1(x))
        y = self.conv1(a)
        y = self.conv2(self.activation(self.bn2(y)))
        y = self.conv3(self.activation(self.bn3(y)))
        out: Tensor = y + _short(self.shortcut, x, x if self.projects_raw else a)
        return out


def _projection(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    # A sequence of one, because public checkpoints call its weight shortcut.0.weight.
    return None if stride == 1 and inputs == outputs else nn.Sequential(conv1x1(inputs, outputs, stride))


def _short(projection: nn.Module | None, x: Tensor, projected: Tensor) -> Tensor:
    """The shortcut: x itself where shapes allow it, otherwise the projection of what it is fed."""
    if projection is None:
        return x
    out: Tensor = projection(projected)
    return out


class PreActResNet(nn.Module):
    """Convolution, four stages, an optional last normalisation and activation, global average, classifier.

    Args:
        block: what the stages consist of.
        depths: blocks in each of the four stages.
        form: "a", "b" or "c".
    """

    def __init__(
        self,
        shape: ImageShape,
        block: type[PreActBlock] | type[PreActBottleneck],
        depths: tuple[int, int, int, int],
        form: Literal["a", "b", "c"],
        activation: Activation,
        width: int,
        stem_stride: int,
    ) -> None:
        super().__init__()
        new_activation = ACTIVATIONS[activation]
        projects_raw = {"a": True, "b": False, "c": True}[form]

        def stage(inputs: int, width: int, depth: int, stride: int) -> nn.Sequential:
            first = block(inputs, width, stride, new_activation, projects_raw)
            rest = [block(block.expansion * width, width, 1, new_activation, projects_raw) for _ in range(depth - 1)]
            return nn.Sequential(first, *rest)

        outputs = block.expansion * 8 * width
        self.conv1 = conv3x3(shape.channels, width, stem_stride)
        self.layer1 = stage(width, width, depths[0], 1)
        self.layer2 = stage(block.expansion * width, 2 * width, depths[1], 2)
        self.layer3 = stage(block.expansion * 2 * width, 4 * width, depths[2], 2)
        self.layer4 = stage(block.expansion * 4 * width, 8 * width, depths[3], 2)
        self.bn = None if form == "a" else nn.BatchNorm2d(outputs)
        self.activation = new_activation()
        self.linear = nn.Linear(outputs, shape.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        if self.bn is not None:
            x = self.activation(self.bn(x))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


class DeepMindPreActBlock(nn.Module):
    """PreActBlock with "SAME" padding and a 3x3 shortcut that sees the block's input itself."""

    def __init__(self, inputs: int, width: int, stride: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.batchnorm_0 = nn.BatchNorm2d(inputs, momentum=_DEEPMIND_MOMENTUM)
        self.conv_2d_1 = same_conv3x3(inputs, width, stride)
        self.batchnorm_1 = nn.BatchNorm2d(width, momentum=_DEEPMIND_MOMENTUM)
        self.conv_2d_2 = conv3x3(width, width)
        self.shortcut = None if stride == 1 and inputs == width else same_conv3x3(inputs, width, stride)
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_2d_1(self.activation(self.batchnorm_0(x)))
        y = self.conv_2d_2(self.activation(self.batchnorm_1(y)))
        out: Tensor = y + _short(self.shortcut, x, x)
        return out


class DeepMindPreActResNet(nn.Module):
    """Convolution, four stages, normalisation and activation, global average, classifier.

    Args:
        depths: blocks in each of the four stages.
    """

    def __init__(
        self,
        shape: ImageShape,
        depths: tuple[int, int, int, int],
        activation: Activation,
        width: int,
        stem_stride: int,
    ) -> None:
        super().__init__()
        new_activation = ACTIVATIONS[activation]

        def stage(inputs: int, width: int, depth: int, stride: int) -> nn.Sequential:
            first = DeepMindPreActBlock(inputs, width, stride, new_activation)
            return nn.Sequential(
                first, *(DeepMindPreActBlock(width, width, 1, new_activation) for _ in range(depth - 1))
            )

        self.conv_2d = same_conv3x3(shape.channels, width, stem_stride)
        self.layer_0 = stage(width, width, depths[0], 1)
        self.layer_1 = stage(width, 2 * width, depths[1], 2)
        self.layer_2 = stage(2 * width, 4 * width, depths[2], 2)
        self.layer_3 = stage(4 * width, 8 * width, depths[3], 2)
        self.batchnorm = nn.BatchNorm2d(8 * width, momentum=_DEEPMIND_MOMENTUM)
        self.activation = new_activation()
        self.logits = nn.Linear(8 * width, shape.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer_3(self.layer_2(self.layer_1(self.layer_0(self.conv_2d(x)))))
        x = self.activation(self.batchnorm(x))
        logits: Tensor = self.logits(x.mean((2, 3)))
        return logits


@ARCHITECTURES.register("preact_resnet18", smoke={"width": 4})
def preact_resnet18(
    shape: ImageShape,
    /,
    *,
    form: Literal["a", "b", "c", "dm"] = "b",
    activation: Activation = "relu",
    width: Count = 64,
    stem_stride: Literal[1, 2] = 1,
) -> nn.Module:
    """Pre-activation ResNet-18 for small images: the usual network of small robustness studies.

    The published "dm" networks use silu; the activation stays what `activation` says.

    Args:
        form: "a" projects the raw input and ends without normalisation (Wong et al.'s checkpoint); "b" projects
            the activated input and normalises at the end (Rice et al., AWP); "c" projects the raw input and
            normalises at the end (Wong et al.'s later code); "dm" is DeepMind's: raw 3x3 projection, "SAME"
            padding, slow running statistics (momentum 0.01), normalises at the end.
        activation: the nonlinearity, everywhere.
        width: channels of the stem and the first stage; each later stage doubles it.
        stem_stride: 2 halves the resolution at once, for about a quarter of the cost.

    Reference: He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016; form "dm": Rebuffi et al.,
    "Fixing Data Augmentation to Improve Adversarial Robustness", 2021.
    """
    depths = (2, 2, 2, 2)
    if form == "dm":
        return DeepMindPreActResNet(shape, depths, activation, width, stem_stride)
    return PreActResNet(shape, PreActBlock, depths, form, activation, width, stem_stride)


@ARCHITECTURES.register("preact_resnet34", smoke={"width": 4})
def preact_resnet34(
    shape: ImageShape,
    /,
    *,
    form: Literal["a", "b", "c", "dm"] = "b",
    activation: Activation = "relu",
    width: Count = 64,
    stem_stride: Literal[1, 2] = 1,
) -> nn.Module:
    """Pre-activation ResNet-34 for small images.

    The published "dm" networks use silu; the activation stays what `activation` says.

    Args:
        form: which input a projection sees, and whether the last features are normalised: "a" raw, no; "b"
            activated, yes; "c" raw, yes; "dm" raw through 3x3, yes, with "SAME" padding and momentum 0.01.
        activation: the nonlinearity, everywhere.
        width: channels of the stem and the first stage; each later stage doubles it.
        stem_stride: 2 halves the resolution at once, for about a quarter of the cost.

    Reference: He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016; form "dm": Rebuffi et al.,
    "Fixing Data Augmentation to Improve Adversarial Robustness", 2021.
    """
    depths = (3, 4, 6, 3)
    if form == "dm":
        return DeepMindPreActResNet(shape, depths, activation, width, stem_stride)
    return PreActResNet(shape, PreActBlock, depths, form, activation, width, stem_stride)


@ARCHITECTURES.register("preact_resnet50", smoke={"width": 4})
def preact_resnet50(
    shape: ImageShape,
    /,
    *,
    form: Literal["a", "b", "c"] = "b",
    activation: Activation = "relu",
    width: Count = 64,
    stem_stride: Literal[1, 2] = 1,
) -> nn.Module:
    """Pre-activation ResNet-50 for small images: sixteen bottlenecks.

    Args:
        form: which input a projection sees, and whether the last features are normalised: "a" raw, no; "b"
            activated, yes; "c" raw, yes.
        activation: the nonlinearity, everywhere.
        width: channels of the stem and inside the first stage; each later stage doubles it.
        stem_stride: 2 halves the resolution at once, for about a quarter of the cost.

    Reference: He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016.
    """
    return PreActResNet(shape, PreActBottleneck, (3, 4, 6, 3), form, activation, width, stem_stride)
