"""Runs at any depth below a folder: one finder for all commands, bounded, and safe against links in a circle."""

import os
from pathlib import Path

import pytest
from stored_results import evaluation, run_results

from robustcli.errors import RobustCliError
from robustcli.models.find import checkpoint_in
from robustcli.reports.summary import read_sources
from robustcli.specs import experiments
from robustcli.store import search
from robustcli.store.files import write_json, write_text
from robustcli.store.jobs import JobRecord, find_jobs, write_job
from robustcli.store.listing import list_folder
from robustcli.store.results import only_results
from robustcli.store.runs import RunFolder
from robustcli.store.search import run_folders
from robustcli.workflows.gate import gate

SPEC = """\
name: one
seed: 0
data: {name: digits}
architecture: {name: small_cnn}
threat: {norm: linf, eps: 0.1}
defense: {name: trades}
"""


def write_run(path: Path) -> RunFolder:
    folder = RunFolder(path)
    write_text(folder.spec, SPEC)
    write_json(folder.results, run_results({"clean": evaluation("1110", evaluator="clean")}, name="one").to_json())
    write_text(folder.best, "weights")
    return folder


def test_every_command_finds_a_run_in_nested_folders(tmp_path: Path) -> None:
    run = write_run(tmp_path / "2026" / "november" / "week 4" / "one" / "00000000-s0")
    write_job(run.path / "job", JobRecord(id="1", name="one", log="1.log"))
    assert [row.run for row in list_folder(tmp_path)] == [str(run.path)]
    assert only_results(tmp_path) == run.path
    sources, damaged = read_sources([tmp_path])
    assert ([source.path for source in sources], damaged) == ([run.results], [])
    assert [outcome.passed for outcome in gate(tmp_path, ["clean>=0.7"])] == [True]
    assert list(find_jobs(tmp_path)) == [run.path]
    assert checkpoint_in(tmp_path) == run.best
    with pytest.raises(RobustCliError, match=r"is a folder; expected the YAML file of a spec, such as .*/spec\.yaml$"):
        experiments.find(str(run.path.parent.parent))


def test_runs_next_to_each_other_are_sorted_and_nothing_is_searched_inside_one(tmp_path: Path) -> None:
    second, first = write_run(tmp_path / "b" / "1-s0"), write_run(tmp_path / "a" / "1-s0")
    write_run(first.path / "copies" / "old")
    write_run(tmp_path / ".trash" / "one")
    assert list(run_folders(tmp_path)) == [first.path, second.path]
    assert list(run_folders(first.path)) == [first.path]


def test_a_spec_next_to_the_folder_of_runs_does_not_hide_them(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "one" / "1-s0")
    write_text(tmp_path / "spec.yaml", SPEC)
    assert list(run_folders(tmp_path)) == [tmp_path, run.path]


def test_links_to_runs_are_followed_but_not_in_a_circle(tmp_path: Path) -> None:
    run = write_run(tmp_path / "archive" / "one" / "1-s0")
    root = tmp_path / "runs"
    root.mkdir()
    (root / "archive").symlink_to(tmp_path / "archive")
    (tmp_path / "archive" / "back").symlink_to(tmp_path)
    (tmp_path / "archive" / "self").symlink_to(tmp_path / "archive")
    (tmp_path / "archive" / "nowhere").symlink_to(tmp_path / "missing")
    assert list(run_folders(root)) == [root / "archive" / "one" / "1-s0"]
    assert os.path.samefile(next(run_folders(root)), run.path)


def test_a_search_ends_with_a_message_where_there_are_many_folders_without_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "_MOST", 10)
    for number in range(20):
        (tmp_path / "disk" / str(number)).mkdir(parents=True)
    with pytest.raises(RobustCliError, match=r"met 11 folders without a run and stopped; name the folder of the runs"):
        read_sources([tmp_path])
    # Runs that are found earn more folders.
    write_run(tmp_path / "a" / "1-s0")
    assert len(read_sources([tmp_path])[0]) == 1


def test_a_search_does_not_go_deeper_than_its_bound(tmp_path: Path) -> None:
    near, far = tmp_path.joinpath(*"1234567"), tmp_path.joinpath(*"123456789")
    write_run(near / "run")
    write_run(far / "run")
    assert list(run_folders(tmp_path)) == [near / "run"]
