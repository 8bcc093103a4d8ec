"""The run store: locked while written, never half-written, and not changed when finished."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from stored_results import DATA, run_results

from robustcli.errors import RobustCliError
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.files import read_json, write_json
from robustcli.store.provenance import this_session
from robustcli.store.records import Record
from robustcli.store.runs import Run, RunFolder, folder_of

ROOT = Path(__file__).resolve().parents[2]
TEXT = """\
name: stored
data: {name: digits, val_size: 50}
architecture: {name: small_cnn}
threat: {norm: linf, eps: 8/255}
defense: {name: trades}
train: {epochs: 3, device: cpu}
evaluate: {clean: clean}
"""
SPEC = ExperimentSpec.parse(TEXT, "the test")


def begun(root: Path) -> RunFolder:
    """A run that was started and released."""
    run = Run.open(root, SPEC, resume=False)
    run.begin("cpu", DATA)
    run.close()
    return run.folder


def finished(root: Path) -> RunFolder:
    run = Run.open(root, SPEC, resume=False)
    run.begin("cpu", DATA)
    run.log(Record.model_validate({"epoch": 0, "loss": 1.0}))
    run.finish(run_results())
    run.close()
    return run.folder


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time of the last change and content of every file except the lock."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


def test_a_run_lies_under_its_name_digest_and_seed(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    assert folder.path == tmp_path / "stored" / f"{SPEC.digest}-s0"
    assert ExperimentSpec.read(folder.spec) == SPEC
    other = ExperimentSpec.parse(TEXT + "seed: 1\n", "the test")
    assert folder_of(tmp_path, other).path == tmp_path / "stored" / f"{SPEC.digest}-s1"


def test_two_handles_cannot_be_open(tmp_path: Path) -> None:
    run = Run.open(tmp_path, SPEC, resume=False)
    with pytest.raises(RobustCliError, match="in use by another process"):
        Run.open(tmp_path, SPEC, resume=True)
    run.close()
    Run.open(tmp_path, SPEC, resume=True).close()


def test_a_second_process_is_refused_and_a_killed_one_releases_the_lock(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from robustcli.store.runs import Run\nfrom robustcli.specs.spec import ExperimentSpec\n"
        f"run = Run.open(Path(sys.argv[1]), ExperimentSpec.parse({TEXT!r}, 'x'), resume=False)\n"
        "print('open', flush=True)\ntime.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        with pytest.raises(RobustCliError, match=f"{SPEC.digest}-s0: in use by another process"):
            Run.open(tmp_path, SPEC, resume=True)
    finally:
        process.kill()
        process.communicate()
    Run.open(tmp_path, SPEC, resume=True).close()


def test_an_unfinished_run_is_resumed_only_on_request(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    folder.last.parent.mkdir(exist_ok=True)
    folder.last.write_bytes(b"state before the first epoch")
    with pytest.raises(RobustCliError, match="this run exists and is unfinished, 0 epochs; continue it with --resume"):
        Run.open(tmp_path, SPEC, resume=False)
    # The refused process has released the lock.
    run = Run.open(tmp_path, SPEC, resume=True)
    assert run.folder == folder
    run.close()


def test_a_run_without_files_starts_without_resume(tmp_path: Path) -> None:
    # Its first session failed before training, for example because data.root was wrong.
    Run.open(tmp_path, SPEC, resume=False).close()
    Run.open(tmp_path, SPEC, resume=False).close()


def test_a_run_that_was_refused_after_reading_its_images_starts_without_resume(tmp_path: Path) -> None:
    # The network did not accept them, so that there is no checkpoint.
    begun(tmp_path)
    Run.open(tmp_path, SPEC, resume=False).close()


def test_a_refused_run_leaves_nothing(tmp_path: Path) -> None:
    run = Run.open(tmp_path / "runs", SPEC, resume=False)
    run.begin("cpu", DATA)
    run.abandon()
    assert list(tmp_path.iterdir()) == []
    # A folder that was there before stays.
    (tmp_path / "runs").mkdir()
    Run.open(tmp_path / "runs", SPEC, resume=False).abandon()
    assert list(tmp_path.rglob("*")) == [tmp_path / "runs"]
    # It is unlocked.
    Run.open(tmp_path / "runs", SPEC, resume=False).close()


@pytest.mark.parametrize("made", ["checkpoints/last.pt", "evaluations/pgd.csv", "job/job.json", "train.jsonl"])
def test_a_run_with_something_in_it_stays_after_an_error(tmp_path: Path, made: str) -> None:
    folder = begun(tmp_path)
    (folder.path / made).parent.mkdir(exist_ok=True)
    (folder.path / made).write_text("something")
    before = contents(folder.path)
    Run.open(tmp_path, SPEC, resume=True).abandon()
    assert contents(folder.path) == before


def test_a_finished_run_is_never_written_again(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    before = contents(folder.path)
    assert folder.is_finished
    time.sleep(0.02)
    for resume in (False, True):
        run = Run.open(tmp_path, SPEC, resume=resume)
        assert run.folder.is_finished
        with pytest.raises(AssertionError):
            run.finish(run_results(status="again"))
        run.close()
    assert contents(folder.path) == before


def test_a_run_whose_spec_was_changed_is_refused(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    text = folder.spec.read_text(encoding="utf-8")
    folder.spec.write_text(text.replace("beta: 6.0", "beta: 1.0"), encoding="utf-8")
    for resume in (False, True):
        with pytest.raises(RobustCliError, match=f"holds a spec of digest .*, this one has {SPEC.digest}"):
            Run.open(tmp_path, SPEC, resume=resume)
    folder.spec.write_text(text.replace("beta: 6.0", "beta: many"), encoding="utf-8")
    with pytest.raises(RobustCliError, match=r"defense\.beta: 'many' is not a number"):
        Run.open(tmp_path, SPEC, resume=True)
    folder.spec.write_text(text, encoding="utf-8")
    Run.open(tmp_path, SPEC, resume=True).close()


def test_a_run_whose_seed_was_changed_is_refused(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    text = folder.spec.read_text(encoding="utf-8")
    folder.spec.write_text(text.replace("seed: 0", "seed: 5"), encoding="utf-8")
    with pytest.raises(RobustCliError, match="seed"):
        Run.open(tmp_path, SPEC, resume=True)


def test_changed_images_are_refused(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    before = contents(folder.path)
    run = Run.open(tmp_path, SPEC, resume=True)
    with pytest.raises(RobustCliError, match=r"the data changed: .* digest dddddddddddd, .* now gives eeeeeeeeeeee"):
        run.begin("cpu", DATA.model_copy(update={"digest": "e" * 64}))
    run.close()
    assert contents(folder.path) == before


def test_every_session_is_recorded(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    run = Run.open(tmp_path, SPEC, resume=True)
    run.begin("another device", DATA)
    run.close()
    known = read_json(folder.provenance)
    assert known["data"] == DATA.to_json()
    assert [session["device"] for session in known["sessions"]] == ["cpu", "another device"]


def test_provenance_names_commit_versions_device_and_command() -> None:
    known = this_session("a device").to_json()
    assert set(known) == {"started", "command", "device", "platform", "python", "versions", "commit", "dirty"}
    assert known["command"][0] == "robust"
    assert known["versions"]["torch"]
    assert known["commit"] is None or len(known["commit"]) == 40
    assert json.loads(json.dumps(known)) == known


# train.jsonl


def plain(folder: RunFolder) -> list[dict[str, Any]]:
    """The records as they were logged."""
    return [record.model_dump(exclude_unset=True) for record in folder.records()]


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    run = Run.open(tmp_path, SPEC, resume=False)
    run.log(Record.model_validate({"epoch": 0, "loss": 2.0}))
    run.log(Record.model_validate({"epoch": 1, "loss": 1.0}))
    whole = run.folder.log.read_bytes()
    second = whole.index(b"\n") + 1
    for length in range(second, len(whole)):
        run.folder.log.write_bytes(whole[:length])
        assert plain(run.folder) == [{"epoch": 0, "loss": 2.0}]
        assert run.folder.status() == "unfinished, 1 epoch"
    # Lines are ASCII, so no cut falls inside a character.
    run.log(Record.model_validate({"epoch": 2, "text": "é"}))
    assert run.folder.log.read_bytes().isascii()
    run.close()


def test_records_of_epochs_to_come_are_dropped_with_all_events(tmp_path: Path) -> None:
    run = Run.open(tmp_path, SPEC, resume=False)
    for record in (
        {"epoch": 0, "loss": 2.0},
        {"epoch": 1, "loss": 1.0},
        {"epoch": 2, "loss": 0.5},
        {"epoch": 2, "event": "failed", "text": "..."},
    ):
        run.log(Record.model_validate(record))
    assert run.folder.status() == "failed"
    with run.folder.log.open("a") as file:
        file.write('{"epoch": 3, "lo')
    run.folder.keep_epochs(2)
    assert plain(run.folder) == [{"epoch": 0, "loss": 2.0}, {"epoch": 1, "loss": 1.0}]
    run.log(Record.model_validate({"epoch": 2, "loss": 0.7}))
    assert plain(run.folder)[-1] == {"epoch": 2, "loss": 0.7}
    run.close()


def test_a_run_without_a_log_has_no_records(tmp_path: Path) -> None:
    assert RunFolder(tmp_path).records() == []


# JSON files


def crash(*_: object, **__: object) -> None:
    raise OSError("the disk is gone")


@pytest.mark.parametrize(("owner", "name"), [(os, "fsync"), (Path, "replace")])
def test_a_crash_before_the_rename_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    path = tmp_path / "inner" / "value.json"
    write_json(path, {"a": 1})
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, crash)
        with pytest.raises(OSError, match="the disk is gone"):
            write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    write_json(path, {"a": 3, "é": None})
    assert read_json(path) == {"a": 3, "é": None}
    assert [file.name for file in path.parent.iterdir()] == ["value.json"]


def test_what_is_not_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(RobustCliError, match=r"bad\.json: not JSON"):
        read_json(tmp_path / "bad.json")
