"""Grids on the command line: which values make one, and which are one value with a comma."""

from pathlib import Path

import pytest

from robustcli.errors import RobustCliError, SpecError
from robustcli.specs import experiments
from robustcli.specs.grid import read_grid
from robustcli.specs.spec import ExperimentSpec
from robustcli.specs.yamlfile import parse_yaml
from robustcli.workflows.sweep_spec import Sweep

SPEC = experiments.find("demo/digits_pgd_at")


def test_a_grid_has_every_combination_and_the_last_key_varies_fastest() -> None:
    grid = read_grid(["defense.beta=1,3", "train.epochs=2", "train.lr=0.1, 0.01"])
    assert dict(grid.rows()) == {
        "beta=1,lr=0.1": ("train.epochs=2", "defense.beta=1", "train.lr=0.1"),
        "beta=1,lr=0.01": ("train.epochs=2", "defense.beta=1", "train.lr=0.01"),
        "beta=3,lr=0.1": ("train.epochs=2", "defense.beta=3", "train.lr=0.1"),
        "beta=3,lr=0.01": ("train.epochs=2", "defense.beta=3", "train.lr=0.01"),
    }
    assert grid.seeds == ()
    full = read_grid(["data.name=a,b", "defense.name=c,d"])
    assert next(name for name, _ in full.rows()) == "data.name=a,defense.name=c"


def test_a_grid_over_a_whole_part_keeps_the_keys_that_are_set_in_it() -> None:
    sweep = Sweep.read(SPEC, ["defense=trades,pgd_at", "defense.steps=3"])
    assert [row.specs[0].defense.parameters["steps"] for row in sweep.rows] == [3, 3]


@pytest.mark.parametrize(
    "override",
    [
        "data.mean=[0.5, 0.5]",
        'note="a, b"',
        "note='it, too'",
        "defense={name: trades, beta: 6}",
        "a={b: [1, 2], c: {d: 3, e: 4}}",
        "data.root=../a",
        "train.lr=0.1",
        "a=[1, 2",
    ],
)
def test_one_value_with_a_comma_is_no_grid(override: str) -> None:
    grid = read_grid([override])
    assert not grid.is_grid
    assert grid.fixed == (override,)


def test_lists_and_mappings_can_be_values_of_a_grid() -> None:
    grid = read_grid(["a=[1, 2],[3]", "b={c: 1, d: 2},e"])
    assert dict(grid.axes) == {"a": ("[1, 2]", "[3]"), "b": ("{c: 1, d: 2}", "e")}


def test_seeds_are_numbers_and_may_be_a_range() -> None:
    assert read_grid(["seed=0..3"]).seeds == (0, 1, 2, 3)
    assert read_grid(["seed=5"]).seeds == (5,)
    assert not read_grid(["seed=5"]).is_grid
    assert read_grid(["train.epochs=1..2"]).axes == {"train.epochs": ("1", "2")}
    with pytest.raises(RobustCliError, match="override 'seed=0,x': 'x' is not a whole number"):
        read_grid(["seed=0,x"])


@pytest.mark.parametrize(
    ("override", "said"), [("a=1,,2", "found an empty value"), ("a=1,", "empty"), ("a=0.1,0.10", "names 0.10 twice")]
)
def test_empty_and_equal_values_are_refused(override: str, said: str) -> None:
    with pytest.raises(RobustCliError, match=said):
        read_grid([override])


def test_a_run_of_a_grid_is_the_run_of_its_values() -> None:
    sweep = Sweep.read(SPEC, ["seed=0,2", "defense.steps=3,5", "train.epochs=20"])
    assert [row.name for row in sweep.rows] == ["steps=3", "steps=5"]
    alone = ExperimentSpec.read(SPEC, ["train.epochs=20", "defense.steps=5", "seed=2"])
    assert sweep.rows[1].specs[1] == alone
    assert [spec.seed for spec in sweep.rows[0].specs] == [0, 2]
    assert [row.name for row in Sweep.read(SPEC, ["seed=0,1"]).rows] == ["all"]
    with pytest.raises(RobustCliError, match=r"rows lr=1 and lr=1\.00 are the same"):
        Sweep.read(SPEC, ["train.lr=1,1.00"])
    with pytest.raises(SpecError, match=r"row steps=x: override defense.steps=x: defense.steps: 'x' is not"):
        Sweep.read(SPEC, ["defense.steps=3,x"])


def test_rows_of_a_grid_are_chosen_by_name() -> None:
    sweep = Sweep.read(SPEC, ["defense.steps=3,5"], ["steps=5"])
    assert [row.name for row in sweep.rows] == ["steps=5"]
    with pytest.raises(RobustCliError, match=r"has no row 'steps=4'; did you mean"):
        Sweep.read(SPEC, ["defense.steps=3,5"], ["steps=4"])


FAMILY = """\
name: family
base: demo/digits_pgd_at
rows:
  plain: {}
  short: {train: {epochs: 20}}
"""


def test_the_base_of_a_sweep_may_be_the_name_of_a_spec() -> None:
    sweep = Sweep.check(parse_yaml(FAMILY, "family.yaml"))
    shipped = ExperimentSpec.read(SPEC)
    plain, short = (row.specs[0] for row in sweep.rows)
    assert plain.name == "family.plain"
    assert {**plain.to_plain(), "name": ""} == {**shipped.to_plain(), "name": ""}
    assert short.train.epochs == 20


def test_a_base_next_to_the_sweep_comes_first_and_its_problems_name_it(tmp_path: Path) -> None:
    text = SPEC.read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(text.replace("steps: 10", "stps: 10"), encoding="utf-8")
    path = tmp_path / "family.yaml"
    path.write_text(FAMILY.replace("demo/digits_pgd_at", "mine.yaml"), encoding="utf-8")
    with pytest.raises(SpecError, match=r"every row: mine.yaml, line 6: defense.stps: unknown parameter"):
        Sweep.read(path)
    path.write_text(FAMILY.replace("demo/digits_pgd_at", "demo/digits_pgd"), encoding="utf-8")
    with pytest.raises(SpecError, match=r"line 2: base: unknown experiment 'demo/digits_pgd'; did you mean"):
        Sweep.read(path)


def test_values_multiply_the_rows_of_a_sweep() -> None:
    sweep = Sweep.check(parse_yaml(FAMILY, "family.yaml"), ["seed=0,1", "defense.steps=3,5"], ["short"])
    assert [row.name for row in sweep.rows] == ["short,steps=3", "short,steps=5"]
    assert {spec.name for row in sweep.rows for spec in row.specs} == {"family.short"}
    assert len({(spec.digest, spec.seed) for row in sweep.rows for spec in row.specs}) == 4
