"""ConvNeXt: convolutional networks designed like transformers, with stems for ImageNet and for small images."""

import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.architectures.activations import ACTIVATIONS
from robustcli.architectures.chain import Chain
from robustcli.architectures.transformer_parts import (
    ChannelNorm,
    ConvStem,
    Mlp,
    StochasticDepth,
    draw_all,
    late_strides,
    layer_norm,
    rising_rates,
)
from robustcli.architectures.weight_names import Settings, Tensors, blocks_of
from robustcli.errors import RobustCliError
from robustcli.registry.types import Activation, Positive, ProperShare


class ConvNextBlock(nn.Module):
    """Residual block: x + scale * MLP(norm(depthwise 7x7 convolution of x)), with the MLP at every pixel."""

    def __init__(self, width: int, layer_scale: float, drop_path: float, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = layer_norm(width)
        self.mlp = Mlp(width, activation=activation)
        self.gamma = nn.Parameter(layer_scale * torch.ones(width))
        self.drop_path = StochasticDepth(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.gamma * self.mlp(self.norm(self.conv_dw(x).permute(0, 2, 3, 1)))
        out: Tensor = x + self.drop_path(branch.permute(0, 3, 1, 2))
        return out


class Stage(nn.Module):
    """Blocks of one width; all stages but the first start with a norm and a convolution that halves the sides."""

    def __init__(self, inputs: int | None, width: int, blocks: list[ConvNextBlock]) -> None:
        super().__init__()
        self.downsample = (
            nn.Identity() if inputs is None else nn.Sequential(ChannelNorm(inputs), nn.Conv2d(inputs, width, 2, 2))
        )
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(self.downsample(x))
        return out


def _stem(form: str, channels: int, width: int, patch: int) -> nn.Module:
    if form == "patch":
        return nn.Sequential(nn.Conv2d(channels, width, patch, patch), ChannelNorm(width))
    half = max(1, width // 2)
    if form == "conv2":
        return ConvStem(channels, (half, width), late_strides(patch, (2, 2)))
    return ConvStem(channels, (half, 3 * half // 2, width), late_strides(patch, (2, 2, 1)))


def suggested(tensors: Tensors) -> Settings | None:
    """Depths and widths of the stages, patches, and the form of the stem."""
    if not {"stages.0.blocks.0.conv_dw.weight", "head.fc.weight"} <= set(tensors):
        return None
    # The smallest networks of timm have convolutions instead of linear layers.
    if tensors["stages.0.blocks.0.mlp.fc1.weight"].dim() != 2:
        return None
    stages = sum(re.fullmatch(r"stages\.\d+\.blocks\.0\.gamma", name) is not None for name in tensors)
    settings: Settings = {
        "depths": [blocks_of(tensors, f"stages.{stage}.") for stage in range(stages)],
        "widths": [tensors[f"stages.{stage}.blocks.0.conv_dw.weight"].shape[0] for stage in range(stages)],
    }
    if "stem.0.weight" in tensors and "stem.3.weight" not in tensors:
        return {**settings, "patch": tensors["stem.0.weight"].shape[-1]}
    if "stem.stem.3.weight" in tensors:
        return {**settings, "patch": 4, "stem": "conv3" if "stem.stem.6.weight" in tensors else "conv2"}
    return None


@ARCHITECTURES.register("convnext", suggested_by="suggested", smoke={"depths": (1, 1), "widths": (4, 8)})
def convnext(
    shape: ImageShape,
    /,
    *,
    depths: tuple[int, ...] = (3, 3, 9, 3),
    widths: tuple[int, ...] = (96, 192, 384, 768),
    patch: Literal[1, 2, 4] = 1,
    stem: Literal["patch", "conv2", "conv3"] = "patch",
    activation: Activation = "gelu",
    layer_scale: Positive = 1e-6,
    drop_path: ProperShare = 0.0,
) -> nn.Module:
    """ConvNeXt: stages of depthwise 7x7 convolutions, layer norms and MLPs; each later stage halves the sides.

    The defaults give ConvNeXt-T with a stem for small images. Depths and first widths of the other published sizes, of
    which each stage has twice the width: atto (2, 2, 6, 2) and 40, femto and pico the same depths and 48 and 64, nano
    (2, 2, 8, 2) and 80, S (3, 3, 27, 3) and 96, B and L the same depths as S and 128 and 192. There are no batch norms;
    stochastic depth draws from torch's global generator in training. Of the layer options only the activation can be
    changed.

    Args:
        depths: blocks of each stage.
        widths: channels of each stage.
        patch: factor by which the stem divides the sides; 4 on ImageNet. With 1, 32 pixels become 4 before the average.
        stem: "patch" (one convolution as wide as a patch, with a norm), "conv2" (two 3x3 convolutions with norms and
            GELUs, published for sizes T and S) or "conv3" (three, for B and L). For patches below 4 the first
            convolutions of these stems lose their stride.
        activation: nonlinearity of the blocks.
        layer_scale: initial value of the learned factor of every channel at the end of a block.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Reference: Liu et al., "A ConvNet for the 2020s", CVPR 2022; convolutional stems: Singh, Croce and Hein, "Revisiting
        Adversarial Training for ImageNet", NeurIPS 2023.
    """
    if len(depths) != len(widths) or not depths:
        raise RobustCliError(f"architecture.depths: {len(depths)} stages, but {len(widths)} widths; give as many")
    if min(*depths, *widths) < 1:
        raise RobustCliError("architecture.depths: each stage needs at least one block and one channel")
    shrinks = patch * 2 ** (len(depths) - 1)
    if min(shape.height, shape.width) < shrinks:
        raise RobustCliError(
            f"architecture.patch: {len(depths)} stages and patches of {patch} divide the sides by {shrinks}, but the "
            f"images have {shape.height}x{shape.width} pixels; use a smaller patch or fewer stages"
        )
    body = _stem(stem, shape.channels, widths[0], patch)
    rates = iter(rising_rates(drop_path, sum(depths)))
    made = []
    for number, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        blocks = [ConvNextBlock(width, layer_scale, next(rates), ACTIVATIONS[activation]) for _ in range(depth)]
        made.append(Stage(widths[number - 1] if number else None, width, blocks))
    # Public checkpoints call these weights head.norm.* and head.fc.*.
    head = OrderedDict(norm=layer_norm(widths[-1]), fc=nn.Linear(widths[-1], shape.classes))
    network = Chain({"stem": body, "stages": nn.Sequential(*made)}, head=nn.Sequential(head))
    draw_all(network, (nn.Conv2d, nn.Linear))
    return network
