"""Products of parameters: a covering part for the normal run, the rest marked `full`."""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations, product
from typing import Any

import pytest

Row = tuple[Any, ...]


def _covered(places: Row, strength: int) -> set[tuple[tuple[int, int], ...]]:
    return set(combinations(enumerate(places), strength))


def cover(*axes: Sequence[Any], strength: int = 2) -> list[Row]:
    """Rows that contain all combinations of `strength` values of different axes.

    Greedy: the next row has the most new combinations, and among equals the rarest values.
    """
    rows = list(product(*(range(len(axis)) for axis in axes)))
    shown: Counter[tuple[int, int]] = Counter()
    missing = set().union(*(_covered(row, strength) for row in rows))
    chosen: list[Row] = []
    while missing:
        best = max(
            rows,
            key=lambda row: (len(_covered(row, strength) & missing), -sum(shown[place] for place in enumerate(row))),
        )
        shown.update(enumerate(best))
        missing -= _covered(best, strength)
        chosen.append(tuple(axis[place] for axis, place in zip(axes, best, strict=True)))
    return chosen


def products(*axes: Sequence[Any], strength: int = 2, marks: Sequence[pytest.MarkDecorator] = ()) -> list[Any]:
    """Parameters for the whole product of the axes; rows outside `cover` are marked `full`."""
    normal = cover(*axes, strength=strength)
    return [
        pytest.param(*row, marks=[*marks, *([] if row in normal else [pytest.mark.full])]) for row in product(*axes)
    ]
