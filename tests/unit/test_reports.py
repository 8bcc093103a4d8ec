"""Tables of results: nothing is cut at 80 columns, evaluations and runs share a report, damaged files are named."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table
from stored_results import DATA, evaluation, run_results, write_raw

from robustcli.reports.compare import comparison_table
from robustcli.reports.results import result_table
from robustcli.reports.summary import csv_text, lines_of, markdown, plain, read_sources
from robustcli.store.files import write_json
from robustcli.store.results import EvalResults, ModelSource, NetworkRecord, Provenance, Session, Threat
from robustcli.store.runs import RunFolder
from robustcli.workflows.compare import compare

CLEAN = evaluation("1" * 353 + "0" * 7, evaluator="clean", parameters={"batch_size": 500})
STAGE = {"entered": 353, "broken": 106, "forwards": 1_887_734, "gradients": 463_218, "seconds": 17.0}
PGD = evaluation(
    "1" * 247 + "0" * 113,
    suspicions=["PGD with 100 steps breaks 2 of 64 images"],
    stages=[{"name": "pgd", "is_black_box": False, **STAGE}],
)
SESSION = Session(
    started="2026-01-01T00:00:00+00:00",
    command=["robust"],
    device="cpu, 1 thread",
    platform="Linux",
    python="3",
    versions={},
    commit=None,
    dirty=None,
)


def rendered(table: Table, width: int) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    return str(text)


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("name", ["pgd", "a_long_name_of_an_evaluation.with-parts"])
def test_results_fit_with_their_numbers_whole(width: int, name: str) -> None:
    text = rendered(result_table(run_results({"clean": CLEAN, name: PGD})), width)
    for number in ("98.1 [96.0, 99.2]", "68.6 [63.5, 73.4]", "98.1"):
        assert number in text
    assert "SUSPECT" in text


@pytest.mark.parametrize("width", [80, 100])
def test_comparisons_fit_with_their_numbers_whole(width: int, tmp_path: Path) -> None:
    worse = evaluation("1" * 41 + "0" * 319)
    a = write_raw(tmp_path / "a.json", clean=CLEAN, pgd_50_10_restarts=PGD)
    b = write_raw(tmp_path / "b.json", clean=CLEAN, pgd_50_10_restarts=worse)
    text = rendered(comparison_table(compare(a, b)), width)
    for number in ("68.6 [63.5, 73.4]", "11.4 [8.3, 15.1]", "+57.22 [+50.09, +62.39]", "98.1"):
        assert number in text


def test_the_wide_table_has_the_cost() -> None:
    text = rendered(result_table(run_results({"pgd": PGD}), is_wide=True), 200)
    assert "pgd-20-1" in text
    assert "247/360" in text


def write_all(root: Path) -> None:
    """Two seeds of one run, an evaluation, and a damaged run."""
    for seed, survivors in ((0, "1100"), (1, "1110")):
        folder = RunFolder(root / "runs" / "mine" / f"00000000-s{seed}")
        results = run_results({"pgd": evaluation(survivors)}, seed=seed)
        write_json(folder.results, results.to_json())
        write_json(folder.provenance, Provenance(data=DATA, sessions=[SESSION]).to_json())
    (root / "runs" / "mine" / "11111111-s0").mkdir()
    (root / "runs" / "mine" / "11111111-s0" / "results.json").write_text("{")
    found = EvalResults(
        name="nets.py:build",
        spec_digest=None,
        threat=Threat(norm="linf", eps="8/255"),
        data=DATA,
        evaluations={"pgd": evaluation("1000")},  # type: ignore[dict-item]
        training_seed=None,
        subject=ModelSource(model="nets.py:build"),
        network=NetworkRecord(sha256="0" * 64, mean=None, std=None),
        provenance=SESSION,
        notes=[],
    )
    write_json(root / "evals" / "nets-00000000" / "results.json", found.to_json())


def test_a_report_has_runs_and_evaluations_and_names_damaged_files(tmp_path: Path) -> None:
    write_all(tmp_path)
    sources, damaged = read_sources([tmp_path])
    (text,) = damaged
    assert "11111111-s0/results.json: not JSON" in text
    lines = lines_of(sources)
    assert sorted((line.experiment, line.seeds) for line in lines) == [("nets.py:build", []), ("stored", [0, 1])]
    table = markdown(lines)
    assert "| stored | linf 8/255 | 0, 1 | pgd-20-1 | 4 | 62.5 ± 17.7 (50.0 to 75.0) |  | cpu, 1 thread |" in table
    assert "| nets.py:build | linf 8/255 |  | pgd-20-1 | 4 | 25.0 [0.6, 80.6] |  | cpu, 1 thread |" in table


def test_a_report_as_csv_and_json_has_fractions(tmp_path: Path) -> None:
    write_all(tmp_path)
    lines = lines_of(read_sources([tmp_path / "runs"])[0])
    (row,) = csv.DictReader(csv_text(lines).splitlines())
    assert (row["accuracy"], row["seeds"], row["low"], row["clean_accuracy"]) == ("0.625", "0 1", "", "")
    found: list[dict[str, Any]] = plain(lines)
    assert (found[0]["accuracy"], found[0]["seeds"], found[0]["low"]) == (0.625, [0, 1], None)
