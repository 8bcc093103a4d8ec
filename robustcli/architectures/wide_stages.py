"""Wide residual networks of three stages, in the forms of TRADES and DeepMind."""

from collections import OrderedDict

from torch import Tensor, nn

from robustcli.architectures import ImageShape
from robustcli.architectures.chain import Chain, stages
from robustcli.architectures.features import classifier_of
from robustcli.architectures.layers import Layers, enlarged
from robustcli.registry.types import Counts3


class WideBlock(nn.Module):
    """Residual block: two 3x3 convolutions after normalization and activation; projections read the activated input."""

    def __init__(self, inputs: int, outputs: int, stride: int, layers: Layers) -> None:
        super().__init__()
        self.bn1 = layers.normalization(inputs)
        self.conv1 = layers.convolution(inputs, outputs, 3, stride)
        self.bn2 = layers.normalization(outputs)
        self.conv2 = layers.convolution(outputs, outputs)
        self.gate = layers.gate(outputs)
        keeps = stride == 1 and inputs == outputs
        self.convShortcut = None if keeps else layers.convolution(inputs, outputs, 1, stride)
        self.activation, self.activation2 = layers.nonlinearities(2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.activation(self.bn1(x))
        y = self.conv1(a)
        y = self.gate(self.conv2(self.activation2(self.bn2(y))))
        out: Tensor = y + (x if self.convShortcut is None else self.convShortcut(a))
        return out


def draw_by_fan_out(network: nn.Module) -> None:
    """Draw convolution weights from N(0, 2 / (k^2 outputs)), and set the bias of the last linear layer to 0.

    Convolutions with a bias and other linear layers belong to norms and gates; they stay unchanged.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.bias is None:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(classifier_of(network).bias)


class DeepMindWideBlock(nn.Module):
    """WideBlock with "SAME" padding."""

    def __init__(self, inputs: int, outputs: int, stride: int, layers: Layers) -> None:
        super().__init__()
        self.batchnorm_0 = layers.normalization(inputs)
        self.conv_0 = layers.convolution(inputs, outputs, 3, stride)
        self.batchnorm_1 = layers.normalization(outputs)
        self.conv_1 = layers.convolution(outputs, outputs)
        # Name of the gate in public checkpoints with squeeze-and-excitation.
        self.se = layers.gate(outputs)
        keeps = stride == 1 and inputs == outputs
        self.shortcut = None if keeps else layers.convolution(inputs, outputs, 1, stride)
        self.activation, self.activation2 = layers.nonlinearities(2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.activation(self.batchnorm_0(x))
        y = self.conv_0(a)
        y = self.se(self.conv_1(self.activation2(self.batchnorm_1(y))))
        out: Tensor = y + (x if self.shortcut is None else self.shortcut(a))
        return out


def trades_network(
    shape: ImageShape,
    depths: Counts3,
    widths: Counts3,
    layers: Layers,
    *,
    stem: int,
    stem_stride: int,
    strides: Counts3,
    upsample: int,
) -> Chain:
    """Wide residual network of TRADES: symmetric padding, convolutions initialized by fan-out, classifier bias 0.

    Args:
        depths: blocks in each stage.
        widths: channels of each stage.
        stem: channels of the first convolution.
        strides: strides of the first block of each stage.
        upsample: factor by which images are enlarged.
    """

    def new(inputs: int, width: int, stride: int) -> nn.Module:
        return WideBlock(inputs, width, stride, layers)

    parts: dict[str, nn.Module] = {
        "enlarged": enlarged(upsample),
        "conv1": layers.convolution(shape.channels, stem, 3, stem_stride),
    }
    for number, blocks in enumerate(stages(new, stem, depths, widths, strides), start=1):
        # Public checkpoints call these weights block1.layer.0.* and so on.
        parts[f"block{number}"] = nn.Sequential(OrderedDict(layer=nn.Sequential(*blocks)))
    parts |= {"bn1": layers.normalization(widths[-1]), "activation": layers.nonlinearity()}
    network = Chain(parts, fc=nn.Linear(widths[-1], shape.classes))
    draw_by_fan_out(network)
    return network


def deepmind_network(
    shape: ImageShape,
    depths: Counts3,
    widths: Counts3,
    layers: Layers,
    *,
    stem: int,
    stem_stride: int,
    strides: Counts3,
    upsample: int,
) -> Chain:
    """Wide residual network of DeepMind, with PyTorch's initial weights; arguments as in `trades_network`.

    The original has a zero classifier and another initialization of convolutions; the PyTorch re-implementations with
    published results use PyTorch's defaults, as here.
    """
    layers = layers.of_deepmind()

    def new(inputs: int, width: int, stride: int) -> nn.Module:
        return DeepMindWideBlock(inputs, width, stride, layers)

    return Chain(
        {
            "enlarged": enlarged(upsample),
            "init_conv": layers.convolution(shape.channels, stem, 3, stem_stride),
            # Public checkpoints call these weights layer.0.block.0.* and so on.
            "layer": nn.Sequential(
                *(
                    nn.Sequential(OrderedDict(block=nn.Sequential(*blocks)))
                    for blocks in stages(new, stem, depths, widths, strides)
                )
            ),
            "batchnorm": layers.normalization(widths[-1]),
            "activation": layers.nonlinearity(),
        },
        logits=nn.Linear(widths[-1], shape.classes),
    )
