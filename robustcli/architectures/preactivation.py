"""Blocks of pre-activation ResNets, in the usual forms and in DeepMind's (key families PRN and DM-PRN)."""

from torch import Tensor, nn

from robustcli.architectures.layers import Layers


class PreActBlock(nn.Module):
    """Residual block: two 3x3 convolutions, each after normalization and activation, + shortcut.

    Args:
        projects_raw: a projection on the shortcut reads the raw input of the block, not the activated one.
    """

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, layers: Layers, projects_raw: bool = False) -> None:
        super().__init__()
        self.bn1 = layers.normalization(inputs)
        self.conv1 = layers.convolution(inputs, width, 3, stride)
        self.bn2 = layers.normalization(width)
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
    """Residual block: 1x1, 3x3 and 1x1 convolutions, each after normalization and activation, + shortcut.

    Args:
        projects_raw: a projection on the shortcut reads the raw input of the block, not the activated one.
    """

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, layers: Layers, projects_raw: bool) -> None:
        super().__init__()
        outputs = self.expansion * width
        self.bn1 = layers.normalization(inputs)
        self.conv1 = layers.convolution(inputs, width, 1)
        self.bn2 = layers.normalization(width)
        self.conv2 = layers.convolution(width, width, 3, stride)
        self.bn3 = layers.normalization(width)
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


class DeepMindPreActBlock(nn.Module):
    """PreActBlock with "SAME" padding and a 3x3 projection of the raw input on the shortcut."""

    def __init__(self, inputs: int, width: int, stride: int, layers: Layers) -> None:
        super().__init__()
        self.batchnorm_0 = layers.normalization(inputs)
        self.conv_2d_1 = layers.convolution(inputs, width, 3, stride)
        self.batchnorm_1 = layers.normalization(width)
        self.conv_2d_2 = layers.convolution(width, width)
        self.gate = layers.gate(width)
        self.shortcut = None if stride == 1 and inputs == width else layers.convolution(inputs, width, 3, stride)
        self.activation, self.activation2 = layers.nonlinearities(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_2d_1(self.activation(self.batchnorm_0(x)))
        y = self.gate(self.conv_2d_2(self.activation2(self.batchnorm_1(y))))
        out: Tensor = y + _short(self.shortcut, x, x)
        return out
