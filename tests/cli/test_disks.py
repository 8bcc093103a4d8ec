"""Errors of disks: one message with the path, exit code 2, nothing half-written, and the command can be repeated."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from shell import TINY, Robust

from robustcli.errors import Interrupted, RobustCliError, disk_message
from robustcli.specs.yamlfile import parse_yaml
from robustcli.store import checkpoint, files
from robustcli.store.checkpoint import Checkpoint
from robustcli.store.files import append, read_json, replacing, write_json
from robustcli.store.records import parse_record
from robustcli.store.runs import RunFolder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB; needs root."""
    path = tmp_path / "small"
    path.mkdir()
    done = (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(path)], capture_output=True, text=True, check=False
        )
        if os.geteuid() == 0
        else None
    )
    if done is None or done.returncode:
        pytest.skip("mounting needs root")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(disk: Path, *, leave: int) -> Path:
    """Fill a disk except for some bytes."""
    space = os.statvfs(disk)
    path = disk / "filler"
    path.write_bytes(bytes(max(0, space.f_bavail * space.f_frsize - leave)))
    return path


def no_half_files(root: Path) -> bool:
    return not [path for path in root.rglob("*") if ".writing" in path.name]


# Enough for the folder and its first files; for one checkpoint; for training, but not for everything after it.
@pytest.mark.parametrize("leave", [0, 20_000, 60_000, 120_000])
def test_training_on_a_full_disk_can_be_resumed(robust: Robust, tiny: Path, small_disk: Path, leave: int) -> None:
    filler = fill(small_disk, leave=leave)
    said = robust("train", tiny, "--runs", small_disk / "runs", "--quiet")
    if said.code:
        said.require(2, "the disk is full", str(small_disk / "runs"))
    assert no_half_files(small_disk)
    filler.unlink()
    robust("train", tiny, "--runs", small_disk / "runs", "--quiet", "--resume").require(0)


@pytest.mark.parametrize("leave", [0, 8_000, 16_000])
def test_evaluating_on_a_full_disk_can_be_repeated(
    robust: Robust, trained: RunFolder, small_disk: Path, leave: int
) -> None:
    filler = fill(small_disk, leave=leave)
    words = ("eval", trained.best, "--attack", "pgd", "--store", small_disk / "evals", "--save-examples", "--quiet")
    robust(*words).require(2, "the disk is full", str(small_disk / "evals"))
    assert no_half_files(small_disk)
    filler.unlink()
    robust(*words).require(0)


def test_a_sweep_on_a_full_disk_can_be_repeated(robust: Robust, tiny: Path, small_disk: Path) -> None:
    sweep = tiny.with_name("sweep.yaml")
    lines = "".join(f"  {line}\n" for line in TINY.splitlines() if not line.startswith("name:"))
    sweep.write_text(f"name: two\nbase:\n{lines}rows:\n  a: {{}}\n  b: {{defense: {{name: natural}}}}\n")
    filler = fill(small_disk, leave=40_000)
    robust("sweep", sweep, "--runs", small_disk / "runs", "--quiet").require(2, "the disk is full")
    assert no_half_files(small_disk)
    filler.unlink()
    robust("sweep", sweep, "--runs", small_disk / "runs", "--quiet").require(0)


def test_a_finished_run_is_read_without_writing(
    robust: Robust, trained: RunFolder, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    robust("eval", trained.best, "--attack", "pgd", "--quiet").require(0)
    (evaluated,) = Path("evals").iterdir()

    def refuse(*words: object, **options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "somewhere")

    monkeypatch.setattr("filelock.FileLock", refuse)
    monkeypatch.setattr(files.os, "fsync", refuse)
    robust("train", tiny, "--runs", trained.path.parents[1], "--quiet").require(0, "stored in")
    robust("eval", trained.best, "--attack", "pgd", "--quiet").require(0, "stored in")
    robust("verify", trained.path).require(0)
    robust("verify", evaluated).require(0)
    robust("runs", "--runs", trained.path.parents[1]).require(0, "tiny")
    robust("report", trained.path).require(0, "tiny")
    robust("compare", trained.path, evaluated, "--key", "pgd").require(0)
    robust("train", tiny, "--runs", "other", "--quiet").require(2, "the file system is read-only")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENAMETOOLONG, 9999])
def test_every_error_of_the_disk_is_one_message(
    robust: Robust, tiny: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*words: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", fail)
    said = robust("train", tiny, "--quiet").require(2, "spec.yaml: ", "run the command again")
    assert said.err.count("\n") == 1
    assert no_half_files(tiny.parent)


def test_a_path_that_is_a_file_and_a_name_that_is_too_long_are_named(robust: Robust, tiny: Path) -> None:
    robust("train", tiny, "--runs", tiny, "--quiet").require(2, str(tiny))
    robust("train", tiny, "--runs", "x" * 300, "--quiet").require(2, "xxx", "the name is too long")


def test_a_path_that_is_not_utf8_is_named(robust: Robust, tiny: Path) -> None:
    robust("train", tiny, "--runs", os.fsdecode(b"ru\xffns")).require(2, "'ru\\xffns': not UTF-8")


def test_a_path_that_only_python_s_settings_make_unreadable_is_told_so(robust: Robust, tiny: Path) -> None:
    """With PYTHONUTF8=0 and the locale C, Python reads the bytes of names as ASCII."""
    escaped = "é".encode().decode("ascii", "surrogateescape")
    robust("train", tiny, "--runs", escaped).require(2, "'é': Python reads names of files as", "PYTHONUTF8=1")


def test_an_error_without_a_number_has_its_own_words() -> None:
    assert disk_message(OSError("no route to host")) == "no route to host"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_json(path, 1)

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match=r"a\.json") as caught:
        write_json(path, 2)
    assert caught.value.filename == str(path)
    assert read_json(path) == 1
    with pytest.raises(OSError, match=r"log"):
        append(tmp_path / "log", "line")
    assert (tmp_path / "log").read_bytes() == b""
    assert no_half_files(tmp_path)


def test_an_error_while_torch_writes_stays_that_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "full")

        def flush(self) -> None:
            pass

    from contextlib import contextmanager

    @contextmanager
    def onto_full(path: Path) -> Iterator[Full]:
        yield Full()

    monkeypatch.setattr(checkpoint, "replacing", onto_full)
    with pytest.raises(OSError, match="full"):
        Checkpoint(spec="", weights={}).write(tmp_path / "a.pt")


def test_a_signal_while_a_checkpoint_is_read_is_an_interruption(
    trained: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*words: object, **options: object) -> None:
        raise Interrupted("stopped by SIGTERM")

    monkeypatch.setattr(checkpoint.torch, "load", stop)
    with pytest.raises(Interrupted):
        Checkpoint.read(trained.best)
    assert not issubclass(Interrupted, Exception)


def test_a_damaged_line_of_the_log_does_not_block_a_resumed_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.log.write_bytes(b'{"epoch": 0}\n{"epo\xff\xfe\n[1]\n{"epoch": 1}\n{"epoch": 2}\n')
    assert folder.status() == "unfinished, 3 epochs"
    with pytest.warns(UserWarning, match=r"train\.jsonl: line [23]"):
        folder.keep_epochs(2)
    assert [record.epoch for record in folder.epochs()] == [0, 1]


def test_a_run_with_a_damaged_log_is_resumed(robust: Robust, tiny: Path) -> None:
    robust("train", tiny, "--quiet").require(0)
    (folder,) = (RunFolder(path) for path in Path("runs").glob("*/*"))
    folder.results.unlink()
    folder.log.write_text("{damaged\n" + folder.log.read_text())
    with pytest.warns(UserWarning, match=r"train\.jsonl: line 1: not JSON.*the line is ignored"):
        robust("train", tiny, "--quiet", "--resume").require(0)


@pytest.mark.parametrize("text", ["[" * 2000 + "]" * 2000, "{a: " * 2000 + "1" + "}" * 2000, "[" * 60 + "]" * 60])
def test_deeply_nested_files_are_one_message(text: str, tmp_path: Path) -> None:
    with pytest.raises(RobustCliError, match="nested too deeply"):
        parse_yaml(text, "deep.yaml")
    path = tmp_path / "deep.json"
    path.write_text("[" * 200_000)
    with pytest.raises(RobustCliError, match="not JSON"):
        read_json(path)
    with pytest.raises(RobustCliError, match="not JSON"):
        parse_record("[" * 200_000, path, 1)


def test_replacing_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file") as caught, replacing(tmp_path / "file" / "inside.json"):
        pass
    assert caught.value.filename
