"""Typed results: files of every version load, and a damaged one gives one error that names file and key."""

import json
from pathlib import Path
from typing import Any

import pytest
from stored_results import evaluation, run_results, write_raw

from robustcli.errors import RobustCliError
from robustcli.reports.summary import Source, lines_of, markdown
from robustcli.store.evaluations import Evaluation, parse_evaluation, read_evaluation
from robustcli.store.files import read_json, write_json
from robustcli.store.provenance import read_provenance
from robustcli.store.results import EvalResults, RunResults, json_schema, read_results
from robustcli.store.sweep_rows import SweepRow

STORED = Path(__file__).resolve().parents[2] / "experiments" / "results"
OLD = sorted(STORED.glob("*/*/results.json"))
# Keys that files of version 1 may lack.
_LATER = ("verdict", "is_upper_bound")


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.parent.name)
def test_results_of_earlier_versions_load_and_agree_with_themselves(path: Path) -> None:
    results, raw = read_results(path), read_json(path)
    assert isinstance(results, RunResults)
    assert results.schema_version == 2
    assert list(results.evaluations) == list(raw["evaluations"])
    for key, found in results.evaluations.items():
        stated = raw["evaluations"][key]
        assert [text for text in found.contradictions(stated) if not text.startswith(_LATER)] == []
        assert found.verdict == stated.get("verdict")
        assert results.clean_accuracy(key) is not None
    assert read_provenance(path.parent / "provenance.json").sessions


def test_a_name_with_a_bar_stays_in_its_column() -> None:
    results = run_results({"pgd": evaluation("110")}, name="one|two.pt")
    _, _, row = markdown(lines_of([Source(Path("results.json"), results, "cpu")])).splitlines()
    assert row.startswith(r"| one\|two.pt | linf 8/255 | 0 | pgd-20-1 | 3 |")
    assert row.replace(r"\|", "").count("|") == 9


def test_there_are_results_of_earlier_versions() -> None:
    assert len(OLD) >= 8


def test_autoattack_without_an_engine_was_the_package() -> None:
    old = evaluation("110", evaluator="autoattack", parameters={"version": "standard"})
    del old["fingerprint"]
    assert parse_evaluation(old, Path("old.json")).parameters == {"engine": "reference", "version": "standard"}
    new = {**old, "fingerprint": {"seed": "0"}}
    assert parse_evaluation(new, Path("new.json")).parameters == {"version": "standard"}


@pytest.mark.parametrize("path", sorted((STORED / "sweeps").glob("*.json")), ids=lambda path: path.stem)
def test_rows_of_sweeps_load_and_stay_as_they_are(path: Path) -> None:
    rows = read_json(path)
    assert rows
    for row in rows:
        # The size of the network was not counted when these were written.
        size = dict.fromkeys(("parameters", "macs", "training_flops"))
        assert SweepRow.model_validate(row).to_json() == {**size, **row}


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    results = run_results({"clean": evaluation("1101", evaluator="clean"), "pgd": evaluation("1001")})
    write_json(tmp_path / "results.json", results.to_json())
    assert read_results(tmp_path / "results.json") == results
    assert read_json(tmp_path / "results.json")["schema"] == 2


def test_accuracy_follows_from_the_survivors_whatever_the_file_says(tmp_path: Path) -> None:
    stated = {**evaluation("1100"), "accuracy": 0.9, "correct": 2, "total": 4, "eps_value": 8 / 255}
    write_json(tmp_path / "pgd.json", stated)
    found = read_evaluation(tmp_path / "pgd.json")
    assert (found.accuracy, found.correct, found.total) == (0.5, 2, 4)
    texts = found.contradictions(stated)
    assert "accuracy: the result says 0.9; its other keys give 0.5" in texts
    assert not any(text.startswith(("correct", "total", "eps_value")) for text in texts)


@pytest.mark.parametrize(("shift", "found"), [(1e-14, False), (1e-6, True)])
def test_an_interval_differs_by_more_than_rounding(shift: float, found: bool) -> None:
    """Quantiles differ by 1e-14 between versions of SciPy."""
    read = Evaluation.model_validate(evaluation("1100"))
    low, high = read.interval
    texts = read.contradictions({**read.to_json(), "interval": [low + shift, high]})
    assert [text.startswith("interval: ") for text in texts] == [True] * found


def test_clean_accuracy_is_that_of_the_same_images() -> None:
    results = run_results({"clean": evaluation("110111", evaluator="clean"), "pgd": evaluation("100")})
    assert results.clean_accuracy("pgd") == 2 / 3
    stage = {"name": "pgd", "is_black_box": False, "entered": 3, "broken": 2, "forwards": 1, "gradients": 1}
    own = run_results({"pgd": evaluation("100", stages=[{**stage, "seconds": 0.0}])})
    assert own.clean_accuracy("pgd") == 1.0
    assert run_results({"pgd": evaluation("100")}).clean_accuracy("pgd") is None


def test_a_verdict_needs_questions() -> None:
    def of(suspicions: Any) -> str | None:
        return Evaluation.model_validate(evaluation("1", suspicions=suspicions)).verdict

    assert (of(None), of([]), of(["zero gradients"])) == (None, "TRUSTED", "SUSPECT")


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"forwards": "many"}, "evaluations.pgd.forwards: found 'many'; expected a valid integer"),
        ({"forwards": 1.5}, "evaluations.pgd.forwards: found 1.5; expected a valid integer"),
        ({"eps": "1/0"}, "evaluations.pgd.eps: found '1/0'; expected a number as text"),
        ({"survivors": ""}, "evaluations.pgd.survivors: found ''; expected a 0 or a 1 for every image"),
        ({"stages": [{"name": "x"}]}, "evaluations.pgd.stages.0.broken: found nothing; expected this key"),
        ({"warnings": "none"}, "evaluations.pgd.warnings: found 'none'; expected a valid list"),
    ],
)
def test_a_damaged_file_is_one_error_with_the_key(tmp_path: Path, changed: dict[str, Any], text: str) -> None:
    path = write_raw(tmp_path / "results.json", pgd={**evaluation("10"), **changed})
    with pytest.raises(RobustCliError) as caught:
        read_results(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert text in str(caught.value)


def test_the_schema_describes_both_kinds_of_results() -> None:
    schema = json_schema()
    assert json.loads(json.dumps(schema)) == schema
    kinds = [schema["$defs"][kind.__name__]["properties"] for kind in (RunResults, EvalResults)]
    assert all({"schema", "name", "threat", "evaluations"} <= kind.keys() for kind in kinds)
    assert {"accuracy", "interval", "survivors"} <= schema["$defs"]["Evaluation"]["properties"].keys()
