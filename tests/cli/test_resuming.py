"""`--resume` says what it found, evaluations are continued with another batch size, and advice fits the command."""

import sys
from pathlib import Path

import pytest
from shell import Robust

from robustcli.cli import main as command_line
from robustcli.errors import Interrupted
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.runs import RunFolder, differences
from robustcli.workflows.resuming import without_run


def test_resume_without_a_run_says_so_and_names_what_is_there(robust: Robust, tiny: Path) -> None:
    robust("train", tiny, "--quiet", "--resume").require(0, "--resume: found no run in runs/tiny; training starts")
    assert "--resume" not in robust("train", tiny, "--quiet", "--resume").require(0).err
    (run,) = Path("runs/tiny").iterdir()
    said = robust("train", tiny, "seed=1", "train.lr=0.02", "--quiet", "--resume")
    said.require(0, f"runs/tiny has {run.name} with seed 0, train.lr 0.01", "starts from the beginning")


def test_resume_with_more_epochs_says_why_not(robust: Robust, tiny: Path) -> None:
    robust("train", tiny, "--quiet").require(0)
    (run,) = Path("runs/tiny").iterdir()
    said = robust("train", tiny, "train.epochs=3", "--quiet", "--resume")
    said.require(2, f"{run} has train.epochs 1, this spec 3; such a run is not continued, because")
    assert len(list(Path("runs/tiny").iterdir())) == 1


def test_a_damaged_run_next_to_it_is_passed_over(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "tiny" / "00000000-s0" / "spec.yaml"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\xff{")
    text = without_run(tmp_path / "runs", ExperimentSpec.read(tiny))
    assert text is not None
    assert "found no run" in text


def test_differences_are_by_dotted_key(trained: RunFolder) -> None:
    spec = ExperimentSpec.read(trained.spec, ["train.epochs=7", "threat.eps=0.2"])
    assert {key: str(value) for key, value in differences(trained, spec).items()} == {
        "train.epochs": "1",
        "threat.eps": "1/10",
    }


def test_another_batch_size_continues_the_same_evaluation(robust: Robust, trained: RunFolder) -> None:
    words = ("eval", trained.best, "--attack", "pgd", "--eps", "0.1", "--examples", "30", "--quiet")
    robust(*words, "--batch-size", 10).require(0)
    robust(*words, "--batch-size", 30).require(0, "stored result of")
    assert len(list(Path("evals").iterdir())) == 1
    robust(*words, "--batch-size", 30, "--steps", 4).require(0)
    assert len(list(Path("evals").iterdir())) == 2


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["train", "tiny.yaml"], "stopped; continue with --resume\n"),
        (["reproduce", "x"], "stopped; run the same command again to resume\n"),
        (["sweep", "x"], "stopped; run the same command again to resume\n"),
        (["diagnose", "x"], "stopped\n"),
        (["plan", "x"], "stopped\n"),
        (["bench", "train"], "stopped\n"),
    ],
)
def test_only_commands_that_resume_advise_it(
    words: list[str], advice: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop() -> None:
        raise Interrupted("stopped")

    monkeypatch.setattr(sys, "argv", ["robust", *words])
    monkeypatch.setattr(command_line, "app", stop)
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    assert ended.value.code == 3
    assert capsys.readouterr().err == advice
