"""Parts of transformers and ConvNeXt: norms, MLPs, stems and stochastic depth."""

import math
from collections.abc import Callable

from torch import Tensor, nn

from robustcli.errors import RobustCliError

# Epsilon of the layer norms; the default of PyTorch is ten times larger.
LAYER_NORM_EPS = 1e-6
# Standard deviation of the initial weights, truncated at +-2, not at two deviations.
_SPREAD = 0.02


def layer_norm(width: int) -> nn.LayerNorm:
    """Return a layer norm over the last axis."""
    return nn.LayerNorm(width, eps=LAYER_NORM_EPS)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of every pixel: (n, c, h, w) -> (n, c, h, w)."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=LAYER_NORM_EPS)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class StochasticDepth(nn.Module):
    """Drop a residual branch for random images in training, and scale it for the others to keep the mean.

    Draws one number per image and call from torch's global generator.

    Args:
        rate: probability that an image loses the branch.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return branch
        kept = 1 - self.rate
        mask = branch.new_empty(len(branch), *[1] * (branch.dim() - 1)).bernoulli_(kept)
        return branch * (mask / kept)


def rising_rates(rate: float, blocks: int) -> list[float]:
    """Return rates of stochastic depth that rise linearly from 0 in the first block to `rate` in the last."""
    return [rate * i / max(1, blocks - 1) for i in range(blocks)]


class Mlp(nn.Module):
    """Two linear layers on the last axis, four times wider between them, with dropout after each."""

    def __init__(self, width: int, dropout: float = 0.0, activation: Callable[[], nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.activation = activation()
        self.fc2 = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.activation(self.fc1(x)))
        out: Tensor = self.dropout(self.fc2(x))
        return out


class ConvStem(nn.Module):
    """Stem of 3x3 convolutions, each with a norm over the channels and a GELU, instead of one patch convolution.

    Args:
        widths: channels after each convolution.
        strides: stride of each convolution, 1 or 2.
        outputs: channels after a final 1x1 convolution; None: no such convolution.
    """

    def __init__(
        self, channels: int, widths: tuple[int, ...], strides: tuple[int, ...], outputs: int | None = None
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, width, stride in zip((channels, *widths), widths, strides, strict=False):
            layers += [nn.Conv2d(inputs, width, 3, stride, padding=1), ChannelNorm(width), nn.GELU()]
        if outputs is not None:
            layers.append(nn.Conv2d(widths[-1], outputs, 1))
        # Public checkpoints call these weights stem.stem.0.* and so on.
        self.stem = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.stem(x)
        return out


def late_strides(patch: int, published: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a stem for smaller patches than published: the first convolutions lose their stride.

    Args:
        patch: a power of two, at most the product of the published strides.
    """
    excess = math.prod(published) // patch
    strides = []
    for stride in published:
        is_lost = stride > 1 and excess > 1
        strides.append(1 if is_lost else stride)
        excess = excess // stride if is_lost else excess
    return tuple(strides)


def require_heads(width: int, heads: int) -> None:
    """Check that the heads of an attention can share a width evenly.

    Raises:
        RobustCliError: the width is not a multiple of the number of heads.
    """
    if width % heads:
        nearest = max(1, round(width / heads)) * heads
        raise RobustCliError(
            f"architecture.width: {width} channels cannot be shared by {heads} heads; write a multiple of "
            f"{heads}, such as {nearest}"
        )


def draw(weight: Tensor) -> None:
    """Draw the initial values of a weight in place."""
    nn.init.trunc_normal_(weight, std=_SPREAD)


def draw_all(network: nn.Module, kinds: tuple[type[nn.Module], ...]) -> None:
    """Draw the initial weights of all layers of some kinds, and set their biases to 0."""
    for module in network.modules():
        if isinstance(module, kinds):
            assert isinstance(module.weight, Tensor)
            draw(module.weight)
            if isinstance(module.bias, Tensor):
                nn.init.zeros_(module.bias)
