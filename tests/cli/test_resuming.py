"""`--resume` says what it found, evaluations are continued with another batch size, and advice fits the command."""

import sys
from pathlib import Path

import pytest
from shell import Robust
from test_resume import outcome, require_same

from robustcli.cli import main as command_line
from robustcli.errors import Interrupted
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.checkpoint import ResumableCheckpoint
from robustcli.store.provenance import read_provenance
from robustcli.store.runs import RunFolder, differences
from robustcli.workflows.resuming import prepare_to_resume


def test_resume_without_a_run_names_the_existing_runs(robust: Robust, tiny: Path) -> None:
    robust("train", tiny, "--quiet", "--resume").require(0, "--resume: found no run in runs/tiny; training starts")
    assert "--resume" not in robust("train", tiny, "--quiet", "--resume").require(0).err
    (run,) = Path("runs/tiny").iterdir()
    said = robust("train", tiny, "seed=1", "train.lr=0.02", "--quiet", "--resume")
    said.require(0, f"runs/tiny has {run.name} with seed 0, train.lr 0.01", "starts from the beginning")


CONTINUED = """\
# Everything that may be continued, with weights that are selected.
name: longer
data: {name: digits, val_size: 40, train_size: 100, augment: {crop: 1}}
architecture: {name: small_cnn, width: 4, hidden: 16}
threat: {norm: linf, eps: 0.1}
defense: {name: pgd_at, steps: 1, averaging: {name: ema, decay: 0.9}}
train:
  epochs: 2
  batch_size: 32
  lr: 1e-2
  optimizer: adam
  schedule: {name: multistep, after: [1]}
  eps_warmup: 1
  select: SELECT
  check_examples: 20
  check_steps: 1
  device: cpu
evaluate:
  clean: {name: clean, examples: 40}
"""


@pytest.mark.slow
@pytest.mark.parametrize("select", ["robust", "last"])
def test_a_run_continued_with_more_epochs_is_bit_identical_to_a_longer_one(
    robust: Robust, tmp_path: Path, select: str
) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(CONTINUED.replace("SELECT", select), encoding="utf-8")
    robust("train", spec, "--quiet", "--runs", "one/runs").require(0)
    (short,) = Path("one/runs/longer").iterdir()
    before = {path: path.read_bytes() for path in sorted(short.rglob("*")) if path.is_file()}
    said = robust("train", spec, "train.epochs=4", "--quiet", "--resume", "--runs", "one/runs")
    said.require(0, f"continues {short}, which has train.epochs 2, in one/runs/longer/", "after 8 updates")
    assert {path: path.read_bytes() for path in before} == before
    robust("train", spec, "train.epochs=4", "--quiet", "--runs", "whole/runs").require(0)
    (longer,) = (path for path in Path("one/runs/longer").iterdir() if path != short)
    assert str(short) in str(read_provenance(RunFolder(longer).provenance).continued_from)
    (tmp_path / "continued" / "runs" / "longer").mkdir(parents=True)
    longer.rename(tmp_path / "continued" / "runs" / "longer" / longer.name)
    require_same(tmp_path / "continued", outcome(tmp_path / "whole"))
    assert len(outcome(tmp_path / "continued")["log"]) == 4


def test_an_unfinished_run_is_continued_with_more_epochs(robust: Robust, tiny: Path) -> None:
    robust("train", tiny, "--quiet").require(0)
    (run,) = Path("runs/tiny").iterdir()
    RunFolder(run).results.unlink()
    robust("train", tiny, "train.epochs=2", "--quiet", "--resume").require(0, f"continues {run}")
    robust("train", tiny, "train.epochs=2", "--quiet").require(0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "part"),
    [("train.schedule=cosine", "train.schedule: cosine follows"), ("defense=dial", "defense: dial follows")],
)
def test_a_run_is_not_continued_where_a_part_follows_the_whole_run(
    robust: Robust, tiny: Path, override: str, part: str
) -> None:
    robust("train", tiny, override, "--quiet").require(0)
    (run,) = Path("runs/tiny").iterdir()
    said = robust("train", tiny, override, "train.epochs=3", "--quiet", "--resume")
    said.require(2, f"{run} has train.epochs 1, this spec 3; it cannot be continued, because {part} the whole")
    assert len(list(Path("runs/tiny").iterdir())) == 1
    said.require(2, f"train.start_from={run}/checkpoints/last.pt")


def test_a_longer_run_is_not_cut_short(robust: Robust, tiny: Path) -> None:
    robust("train", tiny, "train.epochs=2", "--quiet").require(0)
    robust("train", tiny, "--quiet", "--resume").require(0, "with train.epochs 2. Training starts from the beginning")


def test_a_former_last_epoch_is_judged_again_when_a_run_is_extended(robust: Robust, tiny: Path) -> None:
    robust("train", tiny, "--quiet").require(0)
    (run,) = Path("runs/tiny").iterdir()
    for path in (RunFolder(run).best, RunFolder(run).last):
        checkpoint = ResumableCheckpoint.read(path)
        training = checkpoint.training.model_copy(update={"collapsed_at": 0})
        checkpoint.model_copy(update={"training": training}).write(path)
    robust("train", tiny, "train.epochs=2", "--quiet", "--resume").require(0, "tiny, seed 0: finished")


def test_a_damaged_run_next_to_it_is_passed_over(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "tiny" / "00000000-s0" / "spec.yaml"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\xff{")
    text = prepare_to_resume(tmp_path / "runs", ExperimentSpec.read(tiny))
    assert text is not None
    assert "found no run" in text


def test_differences_are_by_dotted_key(trained: RunFolder) -> None:
    spec = ExperimentSpec.read(trained.spec, ["train.epochs=7", "threat.eps=0.2"])
    assert {key: str(value) for key, value in differences(ExperimentSpec.read_stored(trained.spec), spec).items()} == {
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
    def stop(_: list[str]) -> None:
        raise Interrupted("stopped")

    monkeypatch.setattr(sys, "argv", ["robust", *words])
    # The last step before the command begins.
    monkeypatch.setattr(command_line, "usual", stop)
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    assert ended.value.code == 3
    assert capsys.readouterr().err == advice
