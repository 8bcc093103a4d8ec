"""Listing runs: damaged runs, updates of the index, filters and order."""

import errno
import fcntl
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from stored_results import DATA, evaluation, run_results

from robustcli.cli.options import console
from robustcli.errors import RobustCliError
from robustcli.reports.runs import run_lines, select, wide_table
from robustcli.store import listing
from robustcli.store.files import write_json, write_text
from robustcli.store.listing import INDEX, RunRow, list_runs
from robustcli.store.provenance import Provenance
from robustcli.store.runs import RunFolder, is_in_use, lock_folder, locked

SPEC = """\
name: {name}
seed: 0
data: {{name: digits}}
architecture: {{name: small_cnn}}
threat: {{norm: linf, eps: 0.1}}
defense: {{name: {defense}}}
"""


def write_run(root: Path, name: str, survivors: str = "1100", defense: str = "trades") -> RunFolder:
    folder = RunFolder(root / name / "00000000-s0")
    write_text(folder.spec, SPEC.format(name=name, defense=defense))
    write_json(folder.provenance, Provenance(data=DATA, sessions=[]).to_json())
    write_text(folder.log, json.dumps({"epoch": 0, "loss": 1.0, "seconds": 2.0}) + "\n")
    found = {"clean": evaluation("1110", evaluator="clean"), "pgd": evaluation(survivors)}
    write_json(folder.results, run_results(found, name=name).to_json())
    return folder


def test_a_row_has_what_the_files_say(tmp_path: Path) -> None:
    write_run(tmp_path, "one")
    (row,) = list_runs(tmp_path)
    assert (row.run, row.kind, row.status, row.defense) == ("one/00000000-s0", "run", "finished", "trades")
    assert (row.norm, row.eps, row.epoch, row.seconds) == ("linf", "0.1", 0, 5.0)
    assert (row.clean, row.robust) == (0.75, 0.5)


def test_a_suspect_accuracy_is_marked(tmp_path: Path) -> None:
    for name, suspicions in (("good", []), ("bad", ["the gradient is zero"])):
        folder = write_run(tmp_path, name)
        found = {"pgd": evaluation("1100", suspicions=suspicions)}
        write_json(folder.results, run_results(found, name=name).to_json())
    _, bad, good = run_lines(list_runs(tmp_path))
    assert "pgd SUSPECT" in bad
    assert "SUSPECT" not in good


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("results.json", "{"),
        ("results.json", '{"schema": 2, "data": {}, "evaluations": {}}'),
        ("spec.yaml", "name: [1"),
        ("spec.yaml", "name: one"),
        ("provenance.json", "[]"),
        ("train.jsonl", "{}\n"),
    ],
)
def test_one_damaged_run_is_listed_with_its_file_and_the_others_too(tmp_path: Path, name: str, content: str) -> None:
    write_run(tmp_path, "whole")
    (write_run(tmp_path, "broken").path / name).write_text(content)
    broken, whole = list_runs(tmp_path)
    assert (broken.run, broken.status, whole.status) == ("broken/00000000-s0", "damaged", "finished")
    assert name in broken.text


@pytest.mark.parametrize("level", ["", "00000000-s0"])
def test_a_folder_that_cannot_be_read_is_listed_and_read_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    write_run(tmp_path, "whole")
    closed, scandir = write_run(tmp_path, "closed").path.parent / level, os.scandir

    def refusing(path: Path) -> Any:
        if path == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refusing)
        row, whole = list_runs(tmp_path)
    assert (row.status, row.text) == ("damaged", f"{closed}: cannot be read: Permission denied")
    assert whole.status == "finished"
    assert [row.status for row in list_runs(tmp_path)] == ["finished", "finished"]


def test_a_run_whose_file_becomes_readable_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, "one")

    def refused(path: Path, **_: Any) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", refused)
        (row,) = list_runs(tmp_path)
    assert row.status == "damaged"
    assert [row.status for row in list_runs(tmp_path)] == ["finished"]


def test_a_name_with_brackets_is_printed_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, "a[old]")
    console().print(wide_table(list_runs(tmp_path)))
    assert "a[old]/00000000-s0" in capsys.readouterr().out


def test_an_unchanged_run_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, "one")
    rows = list_runs(tmp_path)
    monkeypatch.setattr(listing, "_read_row", lambda *_, **__: pytest.fail("read again"))
    assert list_runs(tmp_path) == rows


def test_the_index_follows_every_change(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "one")
    list_runs(tmp_path)
    write_run(tmp_path, "one", survivors="1000")
    write_run(tmp_path, "two")
    assert [row.robust for row in list_runs(tmp_path)] == [0.25, 0.5]
    for path in folder.path.iterdir():
        path.unlink()
    assert [row.name for row in list_runs(tmp_path)] == ["two"]
    (tmp_path / INDEX).write_text("damaged")
    assert [row.name for row in list_runs(tmp_path)] == ["two"]


def test_an_index_of_another_version_is_not_used(tmp_path: Path) -> None:
    write_run(tmp_path, "one")
    list_runs(tmp_path)
    index = json.loads((tmp_path / INDEX).read_text())
    index["entries"]["one/00000000-s0"]["row"]["defense"] = "stale"
    (tmp_path / INDEX).write_text(json.dumps(index))
    assert list_runs(tmp_path)[0].defense == "stale"
    (tmp_path / INDEX).write_text(json.dumps({**index, "version": 0}))
    assert list_runs(tmp_path)[0].defense == "trades"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_listed(tmp_path: Path) -> None:
    write_run(tmp_path, "one")
    tmp_path.chmod(0o500)
    assert len(list_runs(tmp_path)) == 1
    tmp_path.chmod(0o700)


def row(run: str, **changed: Any) -> RunRow:
    return RunRow(run=run, kind="run", status="finished", **changed)


ROWS = [
    row("b", defense="trades", date="2026-01-02", seconds=5.0),
    row("a", defense="pgd_at", date="2026-01-03"),
    row("c", defense="trades", date="2026-01-01", seconds=9.0),
]


def names(*where: str, sort: str = "run", limit: int | None = None) -> str:
    return "".join(found.run for found in select(ROWS, where, sort, limit))


def test_rows_are_filtered_sorted_and_cut() -> None:
    assert names() == "abc"
    assert names("defense=trades") == "bc"
    assert names("defense=t*", "run=c") == "c"
    assert names(sort="date") == "abc"
    assert names(sort="seconds") == "cba"
    assert names(sort="seconds", limit=1) == "c"


@pytest.mark.parametrize(
    ("where", "sort", "text"),
    [
        (["defence=trades"], "run", "did you mean 'defense'"),
        (["trades"], "run", "expected KEY=VALUE"),
        ([], "robustness", "did you mean 'robust'"),
    ],
)
def test_unknown_keys_are_refused(where: list[str], sort: str, text: str) -> None:
    with pytest.raises(RobustCliError, match=text):
        select(ROWS, where, sort, None)


def test_an_unfinished_run_that_a_process_works_on_is_running(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "one")
    folder.results.unlink()
    with locked(folder.path):
        (row,) = list_runs(tmp_path)
        assert (row.status, row.text) == ("running", "1 epoch")
        assert "running, 1 epoch " in "\n".join(run_lines([row]))
    # Although no other file changed.
    (row,) = list_runs(tmp_path)
    assert (row.status, row.text) == ("unfinished", "1 epoch")


def test_a_run_starts_while_others_look_whether_it_is_in_use(tmp_path: Path) -> None:
    with locked(tmp_path):
        assert is_in_use(tmp_path)
    reader = (tmp_path / "lock").open("rb")
    fcntl.flock(reader, fcntl.LOCK_SH)
    threading.Timer(0.03, reader.close).start()
    lock_folder(tmp_path).release()
