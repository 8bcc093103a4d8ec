"""RobustScaling: how the depths and widths of three stages grow with a budget of multiply-accumulates."""

import math
from typing import Literal

from robustcli.errors import RobustCliError
from robustcli.registry.types import Counts3

Block = Literal["robust", "basic"]
Size = tuple[Counts3, Counts3]

STEM = 16
# Of the multi-scale block: chunks, width of a chunk for 160 planes and per group, groups, reduction of its gate.
SCALES = 8
CARDINALITY = 4
_BASE_WIDTH = 10
_SQUEEZE = 64
EXPANSION = 4

# Published by the budgets that they were made for, in 10^9 multiply-accumulates of a 32x32 image: depths, widths.
_PUBLISHED: dict[float, Size] = {
    5: ((14, 14, 7), (5, 7, 3)),
    10: ((17, 17, 8), (7, 9, 4)),
    20: ((22, 22, 11), (8, 11, 5)),
    40: ((27, 28, 13), (10, 14, 6)),
}
_SMALLEST: Size = ((1, 1, 1), (1, 1, 1))
# Halvings after which no two members of the chain lie between the bounds.
_HALVINGS = 60
_APART = 1e-9


def robust_scaling(budget: float, block: Block = "robust") -> Size:
    """Depths and widths of three stages for a budget: stages are about 2:2:1 deep, 2:2.5:1 wide, and 7:3 in sum.

    How the paper rounds is not published, and no rounding of these ratios gives its four networks. So they are
    taken as they are, and joined by a chain of networks: between two of them every number grows evenly with the
    logarithm of a size, and beyond with its cube root, as cost grows with depth and the square of width. Of this
    chain a budget gets the member whose cost is nearest. The published ones cost 2 % less to 8 % more than their
    budgets say; so a budget stands for their cost, and between them for a share of both.

    No number falls when the budget rises. From 1 on the cost is within 16 % of the budget, from 0.1 on within a
    quarter, and below that within a half: depths and widths are small integers, so not nearer.

    Args:
        budget: about 10^9 multiply-accumulates of a 32x32 image; 5, 10, 20 and 40 are A1, A2, A3 and A4.
        block: what the stages consist of; the chain is the same, and costs differ a little.

    Raises:
        RobustCliError: not even the smallest network is within the budget.

    Reference: Huang et al., "Revisiting Residual Networks for Adversarial Robustness", CVPR 2023.
    """
    if budget in _PUBLISHED:
        return _PUBLISHED[budget]
    target = _target(budget, block)
    least = cost(_SMALLEST, block)
    if target < least:
        needed = math.ceil(1e4 * budget * least / target) / 1e4
        raise RobustCliError(
            f"architecture.budget: {budget:g} is less than the smallest network of {block} blocks costs; "
            f"write {needed} or more"
        )
    low, high = 0.0, 2.0 * budget + 1
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(_member(middle), block) <= target else (low, middle)
    smaller, larger = _member(low), _member(high)
    return smaller if target - cost(smaller, block) <= cost(larger, block) - target else larger


def cost(size: Size, block: Block) -> float:
    """10^9 multiply-accumulates of a 32x32 image with three channels and ten classes."""
    inputs, side = STEM, 32
    total = 27 * STEM * side**2
    for number, (depth, width) in enumerate(zip(*size, strict=True)):
        planes = STEM * 2**number * width
        for i in range(depth):
            stride = 2 if number and i == 0 else 1
            side //= stride
            count = _basic if block == "basic" else _multi_scale
            total += count(inputs, planes, stride, side**2)
            inputs = planes * (1 if block == "basic" else EXPANSION)
    return (total + 10 * inputs) / 1e9


def chunk_width(planes: int) -> int:
    """Channels of each chunk of a multi-scale block."""
    return max(1, planes * _BASE_WIDTH // 160) * CARDINALITY


def squeezed_width(planes: int) -> int:
    """Channels between the two layers of its gate."""
    return max(1, EXPANSION * planes // _SQUEEZE)


def _basic(inputs: int, planes: int, stride: int, area: int) -> int:
    projection = inputs * planes if stride > 1 or inputs != planes else 0
    return area * (9 * inputs * planes + 9 * planes**2 + projection)


def _multi_scale(inputs: int, planes: int, stride: int, area: int) -> int:
    outputs, chunk = EXPANSION * planes, chunk_width(planes)
    expansion = inputs * SCALES * chunk * stride**2
    chunks = (SCALES - 1) * 9 * chunk**2 // CARDINALITY
    projection = inputs * outputs if stride > 1 or inputs != outputs else 0
    gate = 2 * outputs * squeezed_width(planes)
    return area * (expansion + chunks + SCALES * chunk * outputs + projection) + gate


def _target(budget: float, block: Block) -> float:
    """The cost that a budget stands for: that of the published networks at theirs."""
    lower, upper, share = _between(budget)
    if lower == upper:
        return budget / lower * cost(_PUBLISHED[lower], block)
    low, high = cost(_PUBLISHED[lower], block), cost(_PUBLISHED[upper], block)
    return low * math.exp(share * math.log(high / low))


def _member(size: float) -> Size:
    """The network of the chain at a size, which is about its cost."""
    lower, upper, share = _between(size)
    growth = (size / lower) ** (1 / 3) if lower == upper else 1
    (depths, widths), (more_depths, more_widths) = _PUBLISHED[lower], _PUBLISHED[upper]
    pairs = zip((*depths, *widths), (*more_depths, *more_widths), strict=True)
    values = [growth * ((1 - share) * one + share * other) for one, other in pairs]
    # Numbers that would grow at once, such as all of them at half of A1's, grow one after the other.
    one, two, three, first, second, third = (
        max(1, math.floor(value + 0.5 - place * _APART)) for place, value in enumerate(values)
    )
    return (one, two, three), (first, second, third)


def _between(size: float) -> tuple[float, float, float]:
    """The published budgets around a size and how far it lies between them; twice the nearest beyond all."""
    sizes = sorted(_PUBLISHED)
    if not sizes[0] <= size <= sizes[-1]:
        nearest = sizes[0] if size < sizes[0] else sizes[-1]
        return nearest, nearest, 0.0
    lower = max(known for known in sizes if known <= size)
    upper = min(known for known in sizes if known >= size)
    share = 0.0 if lower == upper else math.log(size / lower) / math.log(upper / lower)
    return lower, upper, share
