"""Commands read finished results on a read-only file system without writing."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from shell import Robust

from robustcli.store.runs import RunFolder

WORDS = ("--attack", "pgd", "--examples", 20, "--quiet")


@pytest.fixture
def mounted(tmp_path: Path, trained: RunFolder, robust: Robust) -> Iterator[Path]:
    """A read-only mount with runs/ and evals/; unlike permissions, it also stops root."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("mounting is not permitted here")
    try:
        run = folder / "runs" / trained.path.parent.name / trained.path.name
        shutil.copytree(trained.path, run)
        robust("eval", run / "checkpoints/best.pt", *WORDS, "--save-examples", "--store", folder / "evals").require(0)
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_finished_results_can_be_read_on_a_read_only_file_system(robust: Robust, tiny: Path, mounted: Path) -> None:
    (run,), (evaluation,) = (mounted / "runs/tiny").iterdir(), (mounted / "evals").iterdir()
    with pytest.raises(OSError, match="Read-only"):
        (mounted / "new").touch()
    best = run / "checkpoints/best.pt"
    for words in (
        ("train", tiny, "--quiet", "--runs", mounted / "runs"),
        ("train", tiny, "--quiet", "--runs", mounted / "runs", "--resume"),
        ("eval", best, *WORDS, "--save-examples", "--store", mounted / "evals"),
        ("eval", best, *WORDS, "--store", "elsewhere"),
        ("verify", run),
        ("verify", evaluation),
        ("runs", mounted / "runs"),
        ("report", mounted / "runs"),
        ("report", run),
        ("compare", run, evaluation),
        ("results", run),
        ("results", evaluation),
        ("show-examples", evaluation),
    ):
        robust(*words).require(0)
    robust("train", tiny, "train.epochs=2", "--quiet", "--resume", "--runs", "runs").require(0)


def test_new_results_on_a_read_only_file_system_are_one_message(robust: Robust, tiny: Path, mounted: Path) -> None:
    (run,) = (mounted / "runs/tiny").iterdir()
    for words in (
        ("train", tiny, "seed=1", "--quiet", "--runs", mounted / "runs"),
        ("train", tiny, "train.epochs=2", "--resume", "--quiet", "--runs", mounted / "runs"),
        ("eval", run / "checkpoints/best.pt", *WORDS, "--seed", 1, "--store", mounted / "evals"),
    ):
        robust(*words).require(2, "the file system is read-only; choose a folder that can be written")


def test_a_finished_evaluation_without_a_record_of_its_network_is_not_reused(
    robust: Robust, trained: RunFolder, tiny: Path
) -> None:
    robust("eval", trained.best, *WORDS).require(0)
    (first,) = Path("evals").iterdir()
    (first / "behavior.npz").unlink()
    said = robust("eval", trained.best, *WORDS).require(0, f"stored in {first}-2")
    assert "stored result" not in said.err
    assert not (first / "behavior.npz").exists()
