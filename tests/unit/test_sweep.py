"""Sweeps: rows, error messages with their place, and the table of results."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from robustcli.architectures import ImageShape
from robustcli.errors import RobustCliError, SpecError
from robustcli.measuring.passes import passes_of
from robustcli.reports.sweep import markdown as markdown_of_rows
from robustcli.specs import experiments
from robustcli.specs.spec import ExperimentSpec
from robustcli.specs.yamlfile import parse_yaml
from robustcli.store.passes import Passes
from robustcli.store.sweep_rows import SweepRow
from robustcli.workflows.sweep_spec import Sweep, is_sweep

SWEEP = """\
name: family
seeds: [3, 5]
base:
  data: {name: digits, augment: {crop: 1}}
  architecture: {name: small_cnn, width: 4}
  threat: {norm: linf, eps: 0.1}
  defense: {name: pgd_at, steps: 3}
  train: {epochs: 2, schedule: cosine}
  evaluate:
    clean: clean
rows:
  plain: {}
  nothing:
  beta: {defense: {name: trades, beta: 2}}
  awp: {defense: {weights: {name: awp, gamma: 0.02}}}
  cutout: {data: {augment: {cutout: 2}}}
  slow: {train: {schedule: {warmup: 1}}, threat: {eps: 1/5}}
  more: {evaluate: {pgd: {name: attack, attack: pgd}}}
"""


def read(text: str, *overrides: str) -> dict[str, ExperimentSpec]:
    sweep = Sweep.check(parse_yaml(text, "family.yaml"), overrides)
    return {row.name: row.specs[0] for row in sweep.rows}


def problems(text: str) -> list[str]:
    with pytest.raises(SpecError) as found:
        read(text)
    assert str(found.value).startswith("family.yaml: ")
    return found.value.problems


def test_a_row_is_the_base_with_what_it_names_changed() -> None:
    rows = read(SWEEP)
    plain = rows["plain"]
    assert rows["nothing"].digest != plain.digest  # Only the name differs.
    assert {**rows["nothing"].to_plain(), "name": ""} == {**plain.to_plain(), "name": ""}
    # With a name: another member, without settings of the old one.
    assert rows["beta"].defense.name == "trades"
    assert (rows["beta"].defense.parameters["beta"], rows["beta"].defense.parameters["steps"]) == (2, 10)
    # Without one: the same member, changed.
    assert (rows["awp"].defense.name, rows["awp"].defense.parameters["steps"]) == ("pgd_at", 3)
    assert rows["awp"].defense.parameters["weights"].parameters["gamma"] == 0.02
    augment = rows["cutout"].data.options.augment
    assert (augment.crop, augment.cutout) == (1, 2)
    # A member that the base gives as a name.
    assert (rows["slow"].train.schedule.name, rows["slow"].train.schedule.parameters["warmup"]) == ("cosine", 1)
    assert (rows["slow"].threat.norm, float(rows["slow"].threat.eps)) == ("linf", 0.2)
    assert list(rows["more"].evaluate) == ["clean", "pgd"]
    assert rows["plain"].train.epochs == rows["slow"].train.epochs == 2


def test_a_run_is_named_by_sweep_and_row_and_every_row_has_all_seeds() -> None:
    sweep = Sweep.check(parse_yaml(SWEEP, "family.yaml"))
    assert [spec.name for row in sweep.rows for spec in row.specs][:4] == ["family.plain"] * 2 + ["family.nothing"] * 2
    assert all([spec.seed for spec in row.specs] == [3, 5] for row in sweep.rows)
    assert {len({spec.digest for spec in row.specs}) for row in sweep.rows} == {1}
    once = Sweep.check(parse_yaml(SWEEP.replace("seeds: [3, 5]\n", ""), "family.yaml"))
    assert [spec.seed for row in once.rows for spec in row.specs] == [0] * 7


def test_overrides_hold_for_every_row() -> None:
    rows = read(SWEEP, "train.epochs=7", "defense.averaging=ema")
    assert {spec.train.epochs for spec in rows.values()} == {7}
    assert {spec.defense.parameters["averaging"].name for spec in rows.values()} == {"ema"}
    assert {spec.seed for spec in read(SWEEP, "seed=4").values()} == {4}
    with pytest.raises(RobustCliError, match="named by the sweep and the row"):
        read(SWEEP, "name=other")
    with pytest.raises(SpecError, match=r"row beta: override defense.start=clean: defense.start: unknown parameter"):
        read(SWEEP, "defense.start=clean")


def test_rows_are_chosen_in_the_order_of_the_file() -> None:
    document = parse_yaml(SWEEP, "family.yaml")
    # The row beta has no start and is not selected.
    sweep = Sweep.check(document, ["defense.start=clean"], ["awp", "plain"])
    assert [row.name for row in sweep.rows] == ["plain", "awp"]
    assert {row.specs[0].defense.parameters["start"] for row in sweep.rows} == {"clean"}
    with pytest.raises(RobustCliError, match=r"family.yaml: has no row 'awpp'; did you mean 'awp'\?"):
        Sweep.check(document, [], ["plain", "awpp"])
    # Rows that are not selected are checked, too.
    with pytest.raises(SpecError, match="row beta: "):
        Sweep.check(parse_yaml(SWEEP.replace("beta: 2", "bta: 2"), "family.yaml"), [], ["plain"])


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        (
            "  nothing:",
            "  nothing: {defence: fgsm}",
            "row nothing: line 13: defence: unknown key; did you mean 'defense'?",
        ),
        ("beta: 2", "bta: 2", "row beta: line 14: defense.bta: unknown parameter of 'trades'"),
        ("gamma: 0.02", "gamma: many", "row awp: line 15: defense.weights.gamma: 'many' is not a number"),
        ("eps: 1/5", "eps: 8", "row slow: line 17: threat.eps: 8 is larger than the pixel range"),
        ("steps: 3", "stps: 3", "line 7: defense.stps: unknown parameter of 'pgd_at'"),
        ("epochs: 2", "epochs: two", "every row: line 8: train.epochs: 'two' is not a whole number"),
        ("rows:", "rws:", "line 11: rws: unknown parameter of a sweep; did you mean 'rows'?"),
        ("name: family", "name: a/b", "line 1: name: 'a/b' may contain only letters"),
        ("[3, 5]", "[]", "line 2: seeds: needs at least one seed, without duplicates"),
        ("[3, 5]", "[3, 3]", "line 2: seeds: needs at least one seed, without duplicates"),
        ("  plain: {}", "  a b: {}", "line 12: rows.a b: names of rows may contain letters"),
        ("  plain: {}", "  plain: fgsm", "line 12: rows.plain: is not a mapping of differences"),
        ("  plain: {}", "  plain: {seed: 1}", "line 12: rows.plain.seed: write seeds next to base"),
        ("  data:", "  name: x\n  data:", "line 4: base.name: a row's run is named by the sweep and the row"),
    ],
)
def test_what_is_wrong_is_named_with_its_line_and_row(old: str, new: str, found: str) -> None:
    assert SWEEP.count(old) == 1
    assert [text for text in problems(SWEEP.replace(old, new)) if found in text]


def test_a_problem_of_several_rows_is_reported_once_and_all_problems_at_once() -> None:
    text = SWEEP.replace("steps: 3", "stps: 3").replace("beta: 2", "bta: 2")
    told = problems(text)
    assert len(told) == 2
    assert told[0].startswith("row plain, nothing, awp, cutout, slow, more: line 7: ")
    assert told[1].startswith("row beta: line 14: ")


def test_a_sweep_without_rows_is_refused() -> None:
    head = SWEEP.partition("rows:")[0]
    assert "line 11: rows: is empty" in problems(head + "rows: {}\n")[0]
    assert "rows: missing; a sweep needs it" in problems(head)[0]
    assert "line 11: rows: nothing is not a mapping of names to values" in problems(head + "rows:\n")[0]
    assert "not a mapping; a sweep has the keys name, base, rows, seeds" in problems("3")[0]


def test_a_replaced_member_leaves_no_line_behind() -> None:
    text = SWEEP.replace("defense: {name: pgd_at, steps: 3}", "defense: {name: dynamic_at, until: 1}")
    text = text.replace("  plain: {}", "  plain: {defense: {name: multi_norm}}")
    told = [line for line in problems(text) if "others" in line]
    assert told
    assert all(line.startswith("row plain: line 12: ") for line in told)


def test_a_sweep_is_no_spec(tmp_path: Path) -> None:
    path = tmp_path / "family.yaml"
    path.write_text(SWEEP, encoding="utf-8")
    assert is_sweep(path)
    with pytest.raises(SpecError, match="run it with robust sweep"):
        ExperimentSpec.read(path)
    assert not is_sweep(experiments.find("demo/digits_pgd_at"))


# Shipped


@pytest.mark.slow
@pytest.mark.parametrize("name", experiments.sweeps())
def test_every_row_of_a_shipped_sweep_is_a_valid_spec(name: str) -> None:
    sweep = Sweep.read(experiments.find(name))
    assert len({spec.digest for row in sweep.rows for spec in row.specs}) == len(sweep.rows)
    for row in sweep.rows:
        assert row.specs[0].warnings() == []
        assert {"clean", "pgd_20"} <= set(row.specs[0].evaluate)
        assert "autoattack" in {chosen.name for chosen in row.specs[0].evaluate.values()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sweeps/mnist_defenses", "sweeps/cifar10_jpeg_defenses"])
def test_the_tables_of_all_defenses_are_evaluated_by_autoattack(name: str) -> None:
    rows = [row.specs[0] for row in Sweep.read(experiments.find(name)).rows]
    assert len({spec.defense.name for spec in rows}) > 10
    assert all("autoattack" in spec.evaluate for spec in rows)


# Passes


SHAPE = ImageShape(1, 8, 8, 10)


@pytest.mark.parametrize(
    ("row", "passes"),
    [
        ("plain", Passes(4, 3, 1)),
        ("beta", Passes(13, 10, 2)),
        ("awp", Passes(5, 3, 2)),
    ],
)
def test_the_passes_of_a_row_are_those_of_its_settings(row: str, passes: Passes) -> None:
    state = torch.random.get_rng_state()
    assert passes_of(read(SWEEP)[row], SHAPE) == passes
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_separate_gate_is_not_counted() -> None:
    text = SWEEP.replace(
        "  plain: {}",
        "  plain:\n    architecture: {name: multibn, network: {name: preact_resnet18, width: 4}}\n"
        "    defense: {name: multibn, others: [], steps: 3}",
    )
    # Clean and adversarial images use different branches.
    assert passes_of(read(text)["plain"], SHAPE) == Passes(5, 3, 2)


def test_passes_are_those_after_every_warm_up() -> None:
    text = SWEEP.replace("gamma: 0.02", "gamma: 0.02, warmup: 1")
    assert passes_of(read(text)["awp"], SHAPE) == Passes(5, 3, 2)


# The table


def markdown(rows: list[dict[str, Any]]) -> str:
    return markdown_of_rows([SweepRow.model_validate(row) for row in rows])


def planted(row: str, **changes: Any) -> dict[str, Any]:
    result = {
        "evaluator": "attack",
        "norm": "linf",
        "eps": "0.1",
        "correct": 30,
        "total": 40,
        "accuracy": 0.75,
        "interval": [0.588, 0.873],
        "parameters": {"attack": {"name": "pgd", "steps": 20, "restarts": 1, "loss": "ce"}},
        "warnings": [],
        "suspicions": [],
    }
    return {
        "row": row,
        "threat": {"norm": "linf", "eps": "0.1"},
        "epochs": 6,
        "seeds": [0],
        "failures": {},
        "collapsed_at": [None],
        "evaluations": {"pgd_20": [result]},
        "passes": {"forwards": 4.0, "input_gradients": 3.0, "weight_gradients": 1.0},
        "images_per_second": 1234.5,
        "best_minus_last": 0.034,
        "runs": [],
        **changes,
    }


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines() if "|" in line]


def test_the_table_has_a_line_per_row() -> None:
    found = cells(markdown([planted("pgd_at"), planted("fgsm", passes=None, best_minus_last=None)]))
    assert found[0] == ["row", "threat", "epochs", "pgd_20 %", "passes", "images/s", "best - last"]
    assert found[2] == ["pgd_at", "linf 0.1", "6", "75.0 [58.8, 87.3]", "9 (4, 3, 1)", "1,234", "3.4"]
    assert found[3] == ["fgsm", "linf 0.1", "6", "75.0 [58.8, 87.3]", "", "1,234", ""]
    assert len(found) == 4


def test_seeds_are_reported_by_mean_and_deviation() -> None:
    one = planted("pgd_at")
    result = one["evaluations"]["pgd_20"][0]
    both = planted(
        "pgd_at",
        seeds=[0, 1],
        collapsed_at=[None, None],
        evaluations={"pgd_20": [result, {**result, "accuracy": 0.65}]},
    )
    table = markdown([both])
    assert "70.0 ± 7.1 (65.0 to 75.0)" in table
    assert "mean ± deviation (range) over seeds; seed 0, 1." in table
    assert "95 % intervals" in markdown([one])


def test_failed_collapsed_and_suspect_rows_are_marked() -> None:
    failed = planted(
        "broken",
        seeds=[],
        collapsed_at=[],
        failures={"0": "the loss is not finite in epoch 1"},
        evaluations={"pgd_20": []},
        images_per_second=None,
        best_minus_last=None,
    )
    suspect = planted("fgsm", collapsed_at=[2])
    suspect["evaluations"]["pgd_20"][0]["suspicions"] = ["zero gradients"]
    table = markdown([failed, suspect])
    found = cells(table)
    assert found[2] == ["broken", "linf 0.1", "6", "failed", "9 (4, 3, 1)", "", ""]
    assert found[3][0] == "fgsm (collapsed)"
    assert "- broken, seed 0: failed: the loss is not finite in epoch 1.\n" in table
    assert "- fgsm, seed 0: robustness collapsed in epoch 3.\n" in table
    assert "- SUSPECT, pgd_20: zero gradients: fgsm.\n" in table


def test_one_suspicion_of_several_rows_is_reported_once() -> None:
    def suspected(name: str, *reasons: str, **changes: Any) -> dict[str, Any]:
        row = planted(name, **changes)
        row["evaluations"] = {"pgd_20": [{**row["evaluations"]["pgd_20"][0], "suspicions": [why]} for why in reasons]}
        return row

    table = markdown(
        [
            suspected("one", "square broke 1 of 200 images after 0.5 s"),
            suspected("two", "square broke 3 of 200 images after 0.5 s"),
            suspected("three", "square broke 3 of 100 images", "steps matter", seeds=[0, 1], collapsed_at=[None, None]),
        ]
    )
    told = [line for line in table.splitlines() if "SUSPECT" in line]
    assert told == [
        "- SUSPECT, pgd_20: square broke n of 200 images after 0.5 s (n): one (1); two (3).",
        "- SUSPECT, pgd_20: square broke 3 of 100 images: three, seed 0.",
        "- SUSPECT, pgd_20: steps matter: three, seed 1.",
    ]


def test_a_suspicion_may_list_more_numbers_than_there_are_letters() -> None:
    rows = [planted("one"), planted("two")]
    for row, first in zip(rows, (0, 50), strict=True):
        images = ", ".join(map(str, range(first, first + 20)))
        row["evaluations"]["pgd_20"][0]["suspicions"] = [f"outside the threat set: 25 images ({images} and 5 more)"]
    (told,) = (line for line in markdown(rows).splitlines() if "SUSPECT" in line)
    assert "25 images (n, m, k, p, q, r, s, t, u, v, w, n13, n14, " in told
    assert "two (50, 51, " in told


def test_evaluations_of_single_rows_are_listed_below() -> None:
    other = planted("multi_norm")
    other["evaluations"]["l2"] = [{**other["evaluations"]["pgd_20"][0], "accuracy": 0.5}]
    table = markdown([other, planted("pgd_at")])
    assert "l2 %" not in table
    assert "- multi_norm, l2: 50.0 [58.8, 87.3] (pgd-20-1).\n" in table
    assert "l2 %" in markdown([other])
