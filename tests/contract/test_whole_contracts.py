"""Defenses, architectures, evaluators, optimizers and data sets fulfill their contracts."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from members import names_of, shape_for, smoke
from products import products

from robustcli.architectures import ImageShape
from robustcli.contracts import architectures as architectures_contract
from robustcli.contracts import datasets as datasets_contract
from robustcli.contracts import defenses as defenses_contract
from robustcli.contracts import evaluators as evaluators_contract
from robustcli.contracts import optimizers as optimizers_contract
from robustcli.contracts.build import SHAPES, build, builder, settings_to_try
from robustcli.contracts.cases import checks_in
from robustcli.defenses import Defense
from robustcli.errors import RobustCliError
from robustcli.evaluators import Evaluator
from robustcli.registry.catalog import catalog
from robustcli.registry.types import Norm

pytestmark = pytest.mark.slow


def named(check: Callable[..., None]) -> str:
    return check.__name__


@pytest.mark.parametrize("name", names_of("defenses"))
@pytest.mark.parametrize("check", checks_in(defenses_contract), ids=named)
def test_defense(name: str, check: Callable[[Defense], None]) -> None:
    check(smoke("defenses", name))


def other_parts() -> Iterator[Any]:
    """Yield defenses with parts; of the search, whose supernet takes seconds, the normal run has one row."""
    has_search = False
    for row in products(
        names_of("defenses"),
        list(catalog("weights")),
        ["eval", "train", "batch_no_update"],
        [name for name in catalog("regularizers") if name != "none"],
    ):
        is_search = row.values[0] == "dsara" and not row.marks
        yield pytest.param(*row.values, marks=pytest.mark.full) if is_search and has_search else row
        has_search |= is_search


@pytest.mark.parametrize(("name", "weights", "attack_bn", "regularizer"), [*other_parts()])
def test_defense_with_other_parts(name: str, weights: str, attack_bn: str, regularizer: str) -> None:
    """Every defense passes its contract with every regularizer and every replaceable part."""
    member = catalog("defenses")[name]
    settings = dict(member.smoke)
    if "weights" in member.replaceable:
        settings |= {"weights": {"name": weights, **catalog("weights")[weights].smoke}, "attack_bn": attack_bn}
    part = {"name": regularizer, **catalog("regularizers")[regularizer].smoke}
    defense = build(member, {**settings, "regularizer": part})
    first_epoch = (0,)
    with_it, without_it = (defenses_contract.observed(one, first_epoch) for one in (defense, build(member, settings)))
    assert not torch.equal(with_it, without_it)
    defenses_contract.trains_every_parameter(defense)
    defenses_contract.restores_modes(defense)
    defenses_contract.keeps_weights_when_it_fails(defense)
    defenses_contract.continues_from_its_state(defense)
    defenses_contract.treats_class_shares_as_labels(defense)


@pytest.mark.parametrize("name", names_of("architectures"))
@pytest.mark.parametrize("size", ["small", pytest.param("large", marks=pytest.mark.full)])
@pytest.mark.parametrize("check", checks_in(architectures_contract), ids=named)
def test_architecture(name: str, size: str, check: Callable[[architectures_contract.Body, ImageShape], None]) -> None:
    member = catalog("architectures")[name]
    shape = shape_for(member, member.smoke) if size == "small" else SHAPES[-1]
    check(builder(member, member.smoke), shape)


@pytest.mark.parametrize("name", names_of("evaluators"))
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_evaluator_gives_a_mask(name: str, norm: Norm) -> None:
    evaluators_contract.gives_a_mask(smoke("evaluators", name), norm)


@pytest.mark.parametrize("name", names_of("evaluators"))
@pytest.mark.parametrize(
    "check",
    [one for one in checks_in(evaluators_contract) if one is not evaluators_contract.gives_a_mask],
    ids=named,
)
def test_evaluator(name: str, check: Callable[[Evaluator], None]) -> None:
    check(smoke("evaluators", name))


@pytest.mark.parametrize("name", names_of("optimizers"))
def test_optimizer_lowers_a_loss(name: str) -> None:
    member = catalog("optimizers")[name]
    for settings in settings_to_try(member):
        optimizers_contract.lowers_a_loss(builder(member, settings))


@pytest.mark.parametrize("name", names_of("datasets"))
def test_dataset_loads_or_names_what_is_missing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, a data set that needs files names the folder it searched; the others load."""
    monkeypatch.chdir(tmp_path)
    member = catalog("datasets")[name]
    for settings in settings_to_try(member):
        try:
            datasets_contract.is_a_source(lambda settings=settings: build(member, settings))  # type: ignore[misc]
        except RobustCliError as error:
            key = next(key for key in ("root", "path") if key in member.parameters)
            assert f"data.{key}" in str(error)  # noqa: PT017
            assert str(tmp_path.resolve()) in str(error)  # noqa: PT017
    assert not list(tmp_path.iterdir()), "wrote files"
