"""What transformers and the networks that imitate them share: norms, perceptrons, stems and dropped branches."""

import math
from collections.abc import Callable

from torch import Tensor, nn

from robustcli.errors import RobustCliError

# Of every layer norm in these networks; PyTorch's own default is ten times larger.
LAYER_NORM_EPS = 1e-6
# Standard deviation of the weights at the start, cut off at two units of size, not at two deviations.
_SPREAD = 0.02


def layer_norm(width: int) -> nn.LayerNorm:
    """Over the last axis."""
    return nn.LayerNorm(width, eps=LAYER_NORM_EPS)


class ChannelNorm(nn.LayerNorm):
    """A layer norm over the channels at every pixel: (n, c, h, w) -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=LAYER_NORM_EPS)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class StochasticDepth(nn.Module):
    """In training, whole images lose a residual branch by chance; the others' is scaled to keep the mean.

    Draws come from torch's global generator, one for each image and call.

    Args:
        rate: share of the images.
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
    """Stochastic depth that grows in a straight line from 0 in the first block to `rate` in the last."""
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
    """3x3 convolutions, each with a norm over the channels and a GELU, in the place of one patch convolution.

    Args:
        widths: channels after each convolution.
        strides: of each, 1 or 2.
        outputs: channels after a last linear map of every pixel; None is no such map.
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
    """Strides of a stem that makes smaller patches than it was published for: the first convolutions lose theirs.

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
    """Refuse a width that the heads of an attention cannot share.

    Raises:
        RobustCliError: it is not a multiple of their number.
    """
    if width % heads:
        nearest = max(1, round(width / heads)) * heads
        raise RobustCliError(
            f"architecture.width: {width} channels cannot be shared by {heads} heads; write a multiple of "
            f"{heads}, such as {nearest}"
        )


def draw(weight: Tensor) -> None:
    """Set a weight to what these networks start from."""
    nn.init.trunc_normal_(weight, std=_SPREAD)


def draw_all(network: nn.Module, kinds: tuple[type[nn.Module], ...]) -> None:
    """Draw the weights of all layers of some kinds; their biases become 0."""
    for module in network.modules():
        if isinstance(module, kinds):
            assert isinstance(module.weight, Tensor)
            draw(module.weight)
            if isinstance(module.bias, Tensor):
                nn.init.zeros_(module.bias)
