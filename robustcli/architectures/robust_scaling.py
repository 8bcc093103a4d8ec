"""RobustScaling: depths and widths of three stages for a budget of multiply-accumulates."""

import math
from typing import Literal

from robustcli.errors import RobustCliError
from robustcli.registry.types import Counts3

Block = Literal["robust", "basic"]
Size = tuple[Counts3, Counts3]

STEM = 16
# Multi-scale block: chunks, groups, width of a group per chunk for 160 planes, reduction of the gate.
SCALES = 8
CARDINALITY = 4
_BASE_WIDTH = 10
_SQUEEZE = 64
EXPANSION = 4

# Published depths and widths by budget, in 10^9 multiply-accumulates of a 32x32 image.
_PUBLISHED: dict[float, Size] = {
    5: ((14, 14, 7), (5, 7, 3)),
    10: ((17, 17, 8), (7, 9, 4)),
    20: ((22, 22, 11), (8, 11, 5)),
    40: ((27, 28, 13), (10, 14, 6)),
}
_SMALLEST: Size = ((1, 1, 1), (1, 1, 1))
# Bisection steps after which at most one network lies between the bounds.
_HALVINGS = 60
_APART = 1e-9


def robust_scaling(budget: float, block: Block = "robust") -> Size:
    """Return depths and widths of three stages for a budget: depths are about 2:2:1, widths 2:2.5:1, in total 7:3.

    The paper does not publish its rounding, and no rounding of these ratios gives its four networks. So the four are
    taken as published and interpolated: between two of them every number grows linearly in the logarithm of a size, and
    beyond them with its cube root, because cost grows with depth and the square of width. The result is the network of
    this sequence whose cost is nearest to the budget. The published networks cost 2 % less to 8 % more than their
    budgets, so a budget means the cost of the published network, interpolated between them.

    Depths and widths never fall when the budget rises. They are small integers, so the cost differs from the budget: by
    up to 16 % for budgets of at least 1, by up to a quarter from 0.1 on, and by up to a half below.

    Args:
        budget: cost of a 32x32 image in 10^9 multiply-accumulates; 5, 10, 20 and 40 give A1, A2, A3 and A4.
        block: block of the stages; the sequence is the same, the costs differ slightly.

    Raises:
        RobustCliError: the smallest network costs more than the budget.

    Reference: Huang et al., "Revisiting Residual Networks for Adversarial Robustness", CVPR 2023.
    """
    if budget in _PUBLISHED:
        return _PUBLISHED[budget]
    target = _target(budget, block)
    least = cost(_SMALLEST, block)
    if target < least:
        needed = math.ceil(1e4 * budget * least / target) / 1e4
        raise RobustCliError(
            f"architecture.budget: {budget:g} is less than the cost of the smallest network of {block} blocks; "
            f"write {needed} or more"
        )
    low, high = 0.0, 2.0 * budget + 1
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(_member(middle), block) <= target else (low, middle)
    smaller, larger = _member(low), _member(high)
    return smaller if target - cost(smaller, block) <= cost(larger, block) - target else larger


def cost(size: Size, block: Block) -> float:
    """Return the cost of a 32x32 image with three channels and ten classes, in 10^9 multiply-accumulates."""
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
    """Return the channels of each chunk of a multi-scale block."""
    return max(1, planes * _BASE_WIDTH // 160) * CARDINALITY


def squeezed_width(planes: int) -> int:
    """Return the channels between the two layers of the gate of a multi-scale block."""
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
    """Return the cost for a budget: that of the published network, interpolated between them."""
    lower, upper, share = _between(budget)
    if lower == upper:
        return budget / lower * cost(_PUBLISHED[lower], block)
    low, high = cost(_PUBLISHED[lower], block), cost(_PUBLISHED[upper], block)
    return low * math.exp(share * math.log(high / low))


def _member(size: float) -> Size:
    """Return the network of the sequence at a size, which is about its cost."""
    lower, upper, share = _between(size)
    growth = (size / lower) ** (1 / 3) if lower == upper else 1
    (depths, widths), (more_depths, more_widths) = _PUBLISHED[lower], _PUBLISHED[upper]
    pairs = zip((*depths, *widths), (*more_depths, *more_widths), strict=True)
    values = [growth * ((1 - share) * one + share * other) for one, other in pairs]
    # Numbers that would change at the same size change one after the other.
    one, two, three, first, second, third = (
        max(1, math.floor(value + 0.5 - place * _APART)) for place, value in enumerate(values)
    )
    return (one, two, three), (first, second, third)


def _between(size: float) -> tuple[float, float, float]:
    """Return the published budgets around a size and its position between them; outside, the nearest one twice."""
    sizes = sorted(_PUBLISHED)
    if not sizes[0] <= size <= sizes[-1]:
        nearest = sizes[0] if size < sizes[0] else sizes[-1]
        return nearest, nearest, 0.0
    lower = max(known for known in sizes if known <= size)
    upper = min(known for known in sizes if known >= size)
    share = 0.0 if lower == upper else math.log(size / lower) / math.log(upper / lower)
    return lower, upper, share
