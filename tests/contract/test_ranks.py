"""Two processes train every member to the same weights as one process."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from members import names_of
from pair import Pair
from ranked_training import Case, trained

from robustcli.registry.catalog import catalog

# Of a weight in float64; what is left is the order of sums.
TOLERANCE = 1e-9


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    pair = Pair(tmp_path_factory.mktemp("pair"))
    yield pair
    pair.close()


def largest_difference(case: Case, pair: Pair) -> float:
    alone, (first, second) = trained(case), pair.run(trained, case)
    assert alone.keys() == first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first), "the processes differ from each other"
    return max(float((alone[name] - first[name]).abs().max()) for name in alone if alone[name].numel())


def entry(family: str, name: str) -> dict[str, Any]:
    return {"name": name, **catalog(family)[name].smoke}


def cases() -> list[Any]:
    found = [(name, Case(defense=entry("defenses", name))) for name in names_of("defenses")]
    base = {"name": "trades", "steps": 2}
    for family, key in (("weights", "weights"), ("averaging", "averaging"), ("regularisers", "regulariser")):
        found += [(f"{family}-{name}", Case(defense={**base, key: entry(family, name)})) for name in names_of(family)]
    found += [(f"mixers-{name}", Case(mixer=entry("mixers", name))) for name in names_of("mixers")]
    return [pytest.param(case, id=name) for name, case in found]


@pytest.mark.parametrize("case", cases())
def test_two_processes_train_as_one_does(case: Case, pair: Pair) -> None:
    assert largest_difference(case, pair) < TOLERANCE
