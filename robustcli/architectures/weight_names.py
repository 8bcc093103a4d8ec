"""What the names and shapes of weights say about a network, for architectures that recognize weights of other programs.

Such an architecture declares `suggested_by`, a function in its file. It returns the settings that the weights suggest,
or None for weights of another architecture. Shapes determine depths and widths, but neither activations nor padding, so
settings are a suggestion only.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

Tensors = Mapping[str, Tensor]
Settings = dict[str, object]

# Depths of residual networks by the blocks of their stages; with bottleneck blocks, 34 is 50.
_DEPTHS: Mapping[tuple[int, ...], int] = {
    (1, 1, 1, 1): 10,
    (2, 2, 2, 2): 18,
    (3, 4, 6, 3): 34,
    (3, 4, 23, 3): 101,
    (3, 8, 36, 3): 152,
}
_USUAL_WIDTH = 64
# Channels of the stem of wide residual networks.
_STEM = 16


def counts(tensors: Iterable[str], pattern: str, stages: Iterable[int]) -> tuple[int, ...]:
    """Number of names in each stage that match a pattern, in which %d stands for the number of the stage."""
    names = list(tensors)
    return tuple(sum(re.fullmatch(pattern % stage, name) is not None for name in names) for stage in stages)


def width_of(stem: Tensor) -> Settings:
    """The width of a residual network, unless it is the usual one."""
    return {} if stem.shape[0] == _USUAL_WIDTH else {"width": stem.shape[0]}


def residual_depth(tensors: Tensors, pattern: str, stages: Iterable[int]) -> int | None:
    """Depth of a residual network of four stages with a usual number of blocks; None for others."""
    return _DEPTHS.get(counts(tensors, pattern, stages))


def usual_residual_depth(tensors: Tensors) -> int | None:
    """Depth of a residual network with the names of most implementations; None for other networks."""
    if not {"layer1.0.conv1.weight", "conv1.weight"} <= set(tensors):
        return None
    depth = residual_depth(tensors, r"layer%d\.(\d+)\.conv1\.weight", (1, 2, 3, 4))
    has_bottlenecks = "layer1.0.conv3.weight" in tensors
    return {34: 50, 101: 101, 152: 152}.get(depth or 0) if has_bottlenecks else depth


def three_stages(tensors: Tensors, last: str, expansion: int) -> Settings:
    """Depths and widths of the three stages of robust residual networks.

    Args:
        last: name of the last convolution of a block.
        expansion: its channels per channel of the others.
    """
    outputs = [tensors[f"blocks.{stage}.layer.0.{last}.weight"].shape[0] for stage in (0, 1, 2)]
    return {
        "depths": counts(tensors, r"blocks\.%d\.layer\.(\d+)\.conv1\.weight", (0, 1, 2)),
        "widths": [channels // (_STEM * 2**stage * expansion) for stage, channels in enumerate(outputs)],
    }


def has_three_stages(tensors: Tensors) -> bool:
    """Return True for weights with the names of robust residual networks."""
    return {"stem_conv.weight", "blocks.2.layer.0.conv1.weight"} <= set(tensors)


def blocks_of(tensors: Tensors, stage: str = "") -> int:
    """Number of transformer blocks, or of blocks of a stage such as "stages.0."."""
    pattern = re.escape(stage) + r"blocks\.\d+\.mlp\.fc1\.weight"
    return sum(re.fullmatch(pattern, name) is not None for name in tensors)
