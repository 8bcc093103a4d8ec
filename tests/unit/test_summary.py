"""`robust report` as Markdown: a reader sees which numbers are in doubt."""

import json
from pathlib import Path
from typing import Any

from stored_results import evaluation, run_results

from robustcli.reports.summary import lines_of, markdown, read_sources
from robustcli.store.results import Chain, Selection


def reported(folder: Path, *runs: dict[str, Any]) -> list[list[str]]:
    """Cells of the rows of a report of runs."""
    for number, changed in enumerate(runs):
        path = folder / str(number) / "results.json"
        path.parent.mkdir()
        path.write_text(json.dumps(run_results(**{"seed": number, **changed}).to_json()))
    sources, damaged = read_sources([folder])
    assert not damaged
    return [line.split(" | ") for line in markdown(lines_of(sources)).splitlines()[2:]]


def found(correct: int, **changed: Any) -> dict[str, Any]:
    return {"pgd": evaluation("1" * correct + "0" * (100 - correct), **changed)}


def test_a_suspect_accuracy_is_marked(tmp_path: Path) -> None:
    ((*_, accuracy, _, _),) = reported(tmp_path, {"evaluations": found(40, suspicions=["masked"])})
    assert accuracy.startswith("40.0 [")
    assert accuracy.endswith(" SUSPECT")


def test_a_mean_names_the_seeds_that_are_suspect(tmp_path: Path) -> None:
    runs = [{"evaluations": found(40)}, {"evaluations": found(50, suspicions=["masked"])}]
    ((*_, accuracy, _, _),) = reported(tmp_path, *runs)
    assert accuracy.endswith(" SUSPECT (seed 1)")


def test_a_copy_of_a_run_is_not_another_seed(tmp_path: Path) -> None:
    chain = Chain(links={"settings": "0"}, digest="1")
    one, other = ({"evaluations": found(count), "seed": 0, "chain": chain} for count in (40, 50))
    ((_, _, seeds, _, _, accuracy, *_),) = reported(tmp_path, one, one)
    assert (seeds, accuracy[:6]) == ("0", "40.0 [")
    # Not a copy: one of them was changed, and both are shown.
    (tmp_path / "changed").mkdir()
    ((_, _, seeds, *_),) = reported(tmp_path / "changed", one, other)
    assert seeds == "0, 0"


def test_a_trusted_accuracy_has_no_mark(tmp_path: Path) -> None:
    ((*_, accuracy, _, _),) = reported(tmp_path, {"evaluations": found(40)})
    assert accuracy.endswith("]")


def test_selection_on_test_images_is_stated(tmp_path: Path) -> None:
    chosen = {"evaluations": found(40), "selection": Selection(by="robust", images="test")}
    ((experiment, *_),) = reported(tmp_path, chosen)
    assert "weights selected on test images" in experiment
