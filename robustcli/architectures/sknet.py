"""SKResNet: residual networks with pairs of 3x3 convolutions and attention between their receptive fields.

The keys of the weights are those of timm.
"""

from collections import OrderedDict
from typing import Literal

from torch import Tensor, nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.architectures.chain import Chain, doubling, named, stages
from robustcli.architectures.layers import Layers, enlarged
from robustcli.architectures.postactivation import normed_shortcut
from robustcli.errors import RobustCliError
from robustcli.registry.types import Activation, Count, Downsample, Gate, NormBeside

Unit = Literal["split", "paper"]

# Dilations of the two 3x3 convolutions: 3x3 pixels, and 5x5 with gaps.
_DILATIONS = (1, 2)
_DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


def _normed(
    layers: Layers, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1
) -> OrderedDict[str, nn.Module]:
    convolution = layers.convolution(inputs, outputs, kernel, stride, dilation=dilation)
    return OrderedDict(conv=convolution, bn=layers.normalization(outputs))


class BranchAttention(nn.Module):
    """Attention between branches: from the mean of the summed branches, weights of each branch that sum to 1.

    Args:
        squeezed: channels between the two layers.
    """

    def __init__(self, channels: int, squeezed: int, layers: Layers) -> None:
        super().__init__()
        self.fc_reduce = nn.Conv2d(channels, squeezed, 1, bias=False)
        self.bn = layers.normalization(squeezed, of_means=True)
        self.activation = layers.nonlinearity()
        self.fc_select = nn.Conv2d(squeezed, len(_DILATIONS) * channels, 1, bias=False)

    def forward(self, summed: Tensor) -> tuple[Tensor, ...]:
        """Return the weights (n, channels, 1, 1) of each branch from the sum of the branches (n, channels, h, w)."""
        z = self.activation(self.bn(self.fc_reduce(summed.mean((2, 3), keepdim=True))))
        shares: Tensor = self.fc_select(z).unflatten(1, (len(_DILATIONS), -1)).softmax(1)
        return shares.unbind(1)


class SelectiveKernel(nn.Module):
    """Two activated 3x3 convolutions, one of them dilated, weighted by attention and summed.

    Args:
        unit: "split": each convolution reads half of the channels; "paper": each reads all of them.
        squeezed: channels inside the attention.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, unit: Unit, squeezed: int, layers: Layers) -> None:
        super().__init__()
        seen = inputs // len(_DILATIONS) if unit == "split" else inputs
        self.paths = nn.ModuleList(
            nn.Sequential(_normed(layers, seen, outputs, 3, stride, dilation)) for dilation in _DILATIONS
        )
        self.activations = nn.ModuleList(layers.nonlinearities(len(_DILATIONS)))
        self.attn = BranchAttention(outputs, squeezed, layers)
        self.unit = unit

    def forward(self, x: Tensor) -> Tensor:
        parts = x.chunk(len(_DILATIONS), 1) if self.unit == "split" else (x,) * len(_DILATIONS)
        one, other = (
            activation(path(part)) for activation, path, part in zip(self.activations, self.paths, parts, strict=True)
        )
        share, rest = self.attn(one + other)
        out: Tensor = share * one + rest * other
        return out


class BasicBlock(nn.Module):
    """Residual block: act(selective kernel, 3x3 convolution + shortcut)."""

    expansion = 1
    # Channels of the attention in units "split": a fraction of the width, rounded to a multiple.
    share, multiple = 8, 16

    def __init__(self, inputs: int, width: int, stride: int, unit: Unit, layers: Layers) -> None:
        super().__init__()
        squeezed = _squeezed(width, unit, self.share, self.multiple)
        self.conv1 = SelectiveKernel(inputs, width, stride, unit, squeezed, layers)
        self.conv2 = nn.Sequential(_normed(layers, width, width, 3))
        self.gate = layers.gate(width)
        self.downsample = normed_shortcut(inputs, width, stride, layers)
        self.activation = layers.nonlinearity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.gate(self.conv2(self.conv1(x))) + self.downsample(x))
        return out


class Bottleneck(nn.Module):
    """Residual block: act(1x1 convolution, selective kernel, 1x1 convolution + shortcut), four times wider outside."""

    expansion = 4
    share, multiple = 16, 8

    def __init__(self, inputs: int, width: int, stride: int, unit: Unit, layers: Layers) -> None:
        super().__init__()
        outputs = self.expansion * width
        squeezed = _squeezed(width, unit, self.share, self.multiple)
        self.conv1 = nn.Sequential(_normed(layers, inputs, width, 1))
        self.conv2 = SelectiveKernel(width, width, stride, unit, squeezed, layers)
        self.conv3 = nn.Sequential(_normed(layers, width, outputs, 1))
        self.gate = layers.gate(outputs)
        self.downsample = normed_shortcut(inputs, outputs, stride, layers)
        self.activation, self.activation2 = layers.nonlinearities(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.activation(self.conv1(x)))
        out: Tensor = self.activation2(self.gate(self.conv3(y)) + self.downsample(x))
        return out


def _squeezed(width: int, unit: Unit, share: int, multiple: int) -> int:
    if unit == "paper":
        return max(width // 16, 32)
    return max(1, (width // share + multiple // 2) // multiple) * multiple


@ARCHITECTURES.register("sknet", added={"norm": "batch", "channel_gate": "none"}, smoke={"width": 4})
def sknet(
    shape: ImageShape,
    /,
    *,
    depth: Literal[18, 34, 50] = 18,
    unit: Literal["split", "paper"] = "split",
    form: Literal["small", "imagenet"] = "small",
    activation: Activation = "relu",
    norm: NormBeside = "batch",
    downsample: Downsample = "strided",
    channel_gate: Gate = "none",
    width: Count = 64,
    upsample: Count = 1,
) -> nn.Module:
    """SKResNet: a ResNet with pairs of 3x3 convolutions and attention that chooses between their receptive fields.

    With 18 and 34 layers the first convolution of a block is selective, with 50 the middle one. The attention contains
    norms; a batch norm there has nothing to normalize if a training batch is a single image.

    Args:
        depth: number of layers: 18 or 34, with two convolutions per block, or 50, with three.
        unit: "split": each convolution of a pair reads half of the channels, so both cost as much as one, and the
            attention has 1/8 of the channels (a multiple of 16), or 1/16 at depth 50 (a multiple of 8), as in commonly
            used networks. "paper": each reads all channels, and the attention has 1/16 of them, at least 32. The
            networks of the paper also have 32 groups and twice the width.
        form: "small" has a 3x3 stem of stride 1; "imagenet" has a 7x7 stem of stride 2 and a max pool.
        norm: batch or group (one group inside the attention); dilated convolutions cannot be preconditioned.
        channel_gate: gate at the end of every residual branch, in addition to the attention: none, se, residual_se or
            cifs (its probes learn with the defense cifs).
        width: channels of the stem and the first stage; each later stage has twice as many.
        upsample: factor by which images are enlarged before the stem; every pixel is repeated.

    Reference: Li et al., "Selective Kernel Networks", CVPR 2019.
    """
    if unit == "split" and width % len(_DILATIONS):
        raise RobustCliError(
            f"architecture.width: {width} channels cannot be split into halves; write {width + 1}, or unit: paper"
        )
    layers = Layers.chosen(shape, activation, norm, downsample, channel_gate)
    block = Bottleneck if depth == 50 else BasicBlock
    pools = form == "imagenet"

    def new(inputs: int, width: int, stride: int) -> nn.Module:
        return block(inputs, width, stride, unit, layers)

    parts: dict[str, nn.Module] = {
        "enlarged": enlarged(upsample),
        "conv1": layers.convolution(shape.channels, width, *((7, 2) if pools else (3, 1))),
        "bn1": layers.normalization(width),
        "activation": layers.nonlinearity(),
        "pool": nn.MaxPool2d(3, 2, padding=1) if pools else nn.Identity(),
    }
    parts |= named("layer", stages(new, width, _DEPTHS[depth], doubling(width), (1, 2, 2, 2), block.expansion))
    return Chain(parts, fc=nn.Linear(block.expansion * 8 * width, shape.classes))
