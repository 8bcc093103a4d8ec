"""Wide residual networks, in the form of TRADES and in that of DeepMind (key families WRN and DM-WRN)."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from robustcli.architectures import ACTIVATIONS, ARCHITECTURES, ImageShape
from robustcli.architectures.convolutions import conv1x1, conv3x3, same_conv3x3
from robustcli.errors import RobustCliError
from robustcli.fields import Activation, Count

# Channels of the stem; stage g has 16 * widen * 2**g.
_STEM = 16
# DeepMind keeps 0.99 of the running statistics at every step.
_DEEPMIND_MOMENTUM = 0.01


class WideBlock(nn.Module):
    """Two 3x3 convolutions after normalisation and activation; a projection sees the activated input too."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.convShortcut = None if inputs == outputs else conv1x1(inputs, outputs, stride)
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        a = self.activation(self.bn1(x))
        y = self.conv1(a)
        y = self.conv2(self.activation(self.bn2(y)))
        out: Tensor = y + (x if self.convShortcut is None else self.convShortcut(a))
        return out


class WideResNet(nn.Module):
    """The form of TRADES: symmetric padding, convolutions drawn by fan-out, classifier bias 0 at the start.

    Args:
        blocks: per stage.
    """

    def __init__(
        self, shape: ImageShape, blocks: int, widen: int, activation: Callable[[], nn.Module], stem_stride: int
    ) -> None:
        super().__init__()

        def stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            first = WideBlock(inputs, outputs, stride, activation)
            rest = (WideBlock(outputs, outputs, 1, activation) for _ in range(blocks - 1))
            # Public checkpoints call these weights block1.layer.0.* and so on.
            return nn.Sequential(OrderedDict(layer=nn.Sequential(first, *rest)))

        width = _STEM * widen
        self.conv1 = conv3x3(shape.channels, _STEM, stem_stride)
        self.block1 = stage(_STEM, width, 1)
        self.block2 = stage(width, 2 * width, 2)
        self.block3 = stage(2 * width, 4 * width, 2)
        self.bn1 = nn.BatchNorm2d(4 * width)
        self.activation = activation()
        self.fc = nn.Linear(4 * width, shape.classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        x = self.activation(self.bn1(x))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


class DeepMindWideBlock(nn.Module):
    """WideBlock with "SAME" padding."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.batchnorm_0 = nn.BatchNorm2d(inputs, momentum=_DEEPMIND_MOMENTUM)
        self.conv_0 = same_conv3x3(inputs, outputs, stride)
        self.batchnorm_1 = nn.BatchNorm2d(outputs, momentum=_DEEPMIND_MOMENTUM)
        self.conv_1 = conv3x3(outputs, outputs)
        self.shortcut = None if inputs == outputs else conv1x1(inputs, outputs, stride)
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        a = self.activation(self.batchnorm_0(x))
        y = self.conv_0(a)
        y = self.conv_1(self.activation(self.batchnorm_1(y)))
        out: Tensor = y + (x if self.shortcut is None else self.shortcut(a))
        return out


class DeepMindWideResNet(nn.Module):
    """The form of DeepMind: "SAME" padding and slow running statistics; PyTorch's initial weights.

    The original starts from a zero classifier and other convolution weights; the PyTorch re-implementations
    that published results start from PyTorch's defaults, as here.

    Args:
        blocks: per stage.
    """

    def __init__(
        self, shape: ImageShape, blocks: int, widen: int, activation: Callable[[], nn.Module], stem_stride: int
    ) -> None:
        super().__init__()

        def stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            first = DeepMindWideBlock(inputs, outputs, stride, activation)
            rest = (DeepMindWideBlock(outputs, outputs, 1, activation) for _ in range(blocks - 1))
            # Public checkpoints call these weights layer.0.block.0.* and so on.
            return nn.Sequential(OrderedDict(block=nn.Sequential(first, *rest)))

        width = _STEM * widen
        self.init_conv = same_conv3x3(shape.channels, _STEM, stem_stride)
        self.layer = nn.Sequential(
            stage(_STEM, width, 1),
            stage(width, 2 * width, 2),
            stage(2 * width, 4 * width, 2),
        )
        self.batchnorm = nn.BatchNorm2d(4 * width, momentum=_DEEPMIND_MOMENTUM)
        self.activation = activation()
        self.logits = nn.Linear(4 * width, shape.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(self.init_conv(x))
        x = self.activation(self.batchnorm(x))
        logits: Tensor = self.logits(x.mean((2, 3)))
        return logits


_FORMS = {"trades": WideResNet, "deepmind": DeepMindWideResNet}


@ARCHITECTURES.register("wide_resnet", smoke={"depth": 10, "widen": 1})
def wide_resnet(
    shape: ImageShape,
    /,
    *,
    depth: Count = 28,
    widen: Count = 10,
    form: Literal["trades", "deepmind"] = "trades",
    activation: Activation = "relu",
    stem_stride: Literal[1, 2] = 1,
) -> nn.Module:
    """Wide residual network WRN-depth-widen: three stages of wide pre-activation blocks.

    The published "deepmind" networks use silu; the activation stays what `activation` says. There is no
    dropout, because the published robust networks set its rate to 0.

    Args:
        depth: layers, 6 n + 4 for n blocks per stage.
        widen: factor on the widths 16, 32 and 64 of the three stages.
        form: "trades" pads strided convolutions symmetrically; "deepmind" pads them at the right and the bottom
            only, and its running statistics move slower (momentum 0.01). Weights of one lose accuracy in the other.
        activation: the nonlinearity, everywhere.
        stem_stride: 2 halves the resolution at once, for about a quarter of the cost.

    Reference: Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016; forms: Zhang et al., "Theoretically
    Principled Trade-off between Robustness and Accuracy", ICML 2019, and Gowal et al., "Uncovering the Limits of
    Adversarial Training against Norm-Bounded Adversarial Examples", 2020.
    """
    blocks, rest = divmod(depth - 4, 6)
    if rest or blocks < 1:
        nearest = 6 * max(1, round((depth - 4) / 6)) + 4
        raise RobustCliError(
            f"architecture.depth: {depth} is not 6 n + 4 for n >= 1 blocks in each of three stages; try {nearest}"
        )
    return _FORMS[form](shape, blocks, widen, ACTIVATIONS[activation], stem_stride)
