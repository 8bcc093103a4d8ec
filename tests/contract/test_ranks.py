"""Two processes train every member to the same weights as one process."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from members import names_of
from pair import Pair
from ranked_training import Case, rewound, trained

from robustcli.data.splits import Data
from robustcli.errors import RobustCliError
from robustcli.registry.catalog import catalog
from robustcli.runtime import ranks
from robustcli.workflows.train import _require_same_data

pytestmark = pytest.mark.slow

# Tolerance of a weight in float64 after 6 updates, since the order of sums differs.
TOLERANCE = 1e-9


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    pair = Pair(tmp_path_factory.mktemp("pair"))
    yield pair
    pair.close()


def in_two(case: Case, pair: Pair) -> dict[str, torch.Tensor]:
    """Train in two processes and check that both have the same result."""
    first, second = pair.run(trained, case)
    differing = [name for name in first if not torch.equal(first[name], second[name])]
    assert not differing, f"the processes differ from each other: {differing}"
    found: dict[str, torch.Tensor] = first
    return found


def assert_same(case: Case, pair: Pair) -> None:
    alone, together = trained(case), in_two(case, pair)
    assert alone.keys() == together.keys()
    found = {name: float((alone[name] - together[name]).abs().max()) for name in alone if alone[name].numel()}
    assert max(found.values()) < TOLERANCE, found


def entry(family: str, name: str) -> dict[str, Any]:
    return {"name": name, **catalog(family)[name].smoke}


def refusal(digests: tuple[str, str]) -> str:
    """Error for images of these digests, one for each process; empty if there is none."""
    data = SimpleNamespace(digest=digests[ranks.rank()], extra_digest="")
    try:
        _require_same_data(cast("Data", data))
    except RobustCliError as error:
        return str(error)
    return ""


def test_processes_that_read_different_images_are_refused(pair: Pair) -> None:
    """As on two machines with copies of a data set in folders of the same name."""
    assert pair.run(refusal, ("a" * 64, "a" * 64)) == ["", ""]
    found = pair.run(refusal, ("a" * 64, "b" * 64))
    for number, (error, digest) in enumerate(zip(found, ("a" * 12, "b" * 12), strict=True)):
        assert f"read different images (process {number}: digest {digest})" in error


DEFENSES = {name: entry("defenses", name) for name in names_of("defenses")}
# Defenses whose attack can see batch statistics.
IN_TRAIN_MODE = {
    name: {**settings, "attack_bn": "train"}
    for name, settings in DEFENSES.items()
    if "attack_bn" in catalog("defenses")[name].parameters
}


def parts() -> Iterator[Any]:
    """Every part with a defense; the loss of TRADES has two forwards."""
    base = {"name": "trades", "steps": 2, "attack_bn": "train"}
    for family, key in (("weights", "weights"), ("averaging", "averaging"), ("regularizers", "regularizer")):
        for name in names_of(family):
            yield pytest.param(Case(defense={**base, key: entry(family, name)}), id=f"{family}-{name}")
    for name in names_of("mixers"):
        yield pytest.param(Case(mixer=entry("mixers", name)), id=f"mixers-{name}")


# dsara, which takes longest, is tested below in both stages and orders.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.full) if name == "dsara" else name for name in DEFENSES]
)
def test_two_processes_train_a_defense_as_one_does(name: str, pair: Pair) -> None:
    assert_same(Case(defense=DEFENSES[name]), pair)


@pytest.mark.parametrize("case", list(parts()))
def test_two_processes_train_with_a_part_as_one_does(case: Case, pair: Pair) -> None:
    assert_same(case, pair)


@pytest.mark.full
@pytest.mark.parametrize("name", IN_TRAIN_MODE)
def test_two_processes_attack_in_train_mode_as_one_does(name: str, pair: Pair) -> None:
    assert_same(Case(defense=IN_TRAIN_MODE[name]), pair)


def test_two_processes_rewind_together(pair: Pair, tmp_path: Path) -> None:
    alone = rewound(str(tmp_path / "alone"))
    first, second = pair.run(rewound, str(tmp_path / "together"))
    assert first == second
    assert alone.pop("status") == first.pop("status") == "rewound"
    # The restored checkpoint: after two updates, the first epoch.
    assert alone.pop("updates") == first.pop("updates") == 2
    assert first.pop("events") == alone.pop("events") == ["rewound"]
    assert first.keys() == alone.keys()
    assert first["weights"] == pytest.approx(alone["weights"], rel=1e-3)


@pytest.mark.parametrize("name", ["dial", "free", "hat", "multibn", "pgd_at"])
def test_processes_with_their_own_batch_norms_stay_alike(name: str, pair: Pair) -> None:
    in_two(Case(defense=entry("defenses", name), sync_batch_norm=False, images=16), pair)


@pytest.mark.parametrize("order", ["first", "second"])
def test_a_search_in_two_processes_is_that_of_one(order: str, pair: Pair) -> None:
    """In both stages; later, rounding grows in the narrow supernet, also in one process."""
    defense = {**entry("defenses", "dsara"), "order": order, "first_stage": 0.5}
    assert_same(Case(defense=defense, epochs=2, images=9), pair)


def test_own_batch_norms_give_other_weights(pair: Pair) -> None:
    """As with DataParallel; `sync_batch_norm` avoids it."""
    case = Case(sync_batch_norm=False)
    alone, together = trained(case), in_two(case, pair)
    assert max(float((alone[name] - together[name]).abs().max()) for name in alone) > 1e-4
