"""The part of a product that the normal run needs."""

from itertools import combinations, product

import pytest
from products import cover, products


@pytest.mark.parametrize("strength", [1, 2])
def test_any_values_meet_in_a_cover(strength: int) -> None:
    axes = ("abcd", [1, 2, 3], (True, False))
    rows = cover(*axes, strength=strength)
    for chosen in combinations(range(len(axes)), strength):
        meetings = {tuple(row[axis] for axis in chosen) for row in rows}
        assert meetings == set(product(*(axes[axis] for axis in chosen)))
    assert len(rows) == (4 if strength == 1 else 12)


def test_what_a_cover_leaves_out_belongs_to_the_full_run() -> None:
    parameters = products([1, 2], "ab", strength=1, marks=[pytest.mark.slow])
    marks = {parameter.values: [mark.name for mark in parameter.marks] for parameter in parameters}
    assert set(marks) == set(product([1, 2], "ab"))
    assert {values for values, names in marks.items() if names == ["slow"]} == set(cover([1, 2], "ab", strength=1))
    assert sum(names == ["slow", "full"] for names in marks.values()) == 2


def test_without_a_value_there_is_no_row() -> None:
    assert cover([], [1, 2]) == []
