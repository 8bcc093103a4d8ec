"""`robust bench speedrun`: every training gets the same processor time."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from robustcli.cli.main import app
from robustcli.errors import RobustCliError
from robustcli.evaluation.watcher import Watcher
from robustcli.specs import experiments
from robustcli.store.records import Record
from robustcli.workflows import speedrun
from robustcli.workflows.speedrun import Costs, Length, Lengths, fitted_length, parse_budget, table
from robustcli.workflows.sweep_spec import Sweep

SWEEP = """
name: tiny
seeds: [0, 1]
base:
  data: {name: digits}
  architecture: {name: small_cnn}
  threat: {norm: linf, eps: 0.1}
  defense: {name: pgd_at, steps: 2}
  train: {epochs: 1, batch_size: 64, lr: 0.01, schedule: linear, device: cpu, check_examples: 20, check_steps: 1}
  evaluate:
    clean: {name: clean, examples: 40}
    autoattack: {name: autoattack, attacks: [apgd-ce], examples: 40}
rows:
  pgd_at: {}
  candidate: {defense: {name: n_fgsm}}
  candidate_without_noise: {defense: {name: fgsm}}
"""


class Silent(Watcher):
    """A watcher that counts updates."""

    def __init__(self) -> None:
        self.updates = 0

    def step(self, images: int) -> None:
        self.updates += 1


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(SWEEP, encoding="utf-8")
    return path


def run(sweep: Path, budget: float, only: tuple[str, ...] = ("pgd_at",)) -> tuple[list[Any], Silent]:
    watcher = Silent()
    root = sweep.parent / "runs"
    return speedrun.run_speedrun(sweep, ["seed=0"], only, budget, root, watcher, lambda text: None), watcher


def choose(monkeypatch: pytest.MonkeyPatch, length: Length) -> None:
    """Do not measure."""
    monkeypatch.setattr(speedrun, "measured_costs", lambda spec: None)
    monkeypatch.setattr(speedrun, "fitted_length", lambda costs, budget, batch_size: length)


def test_budgets_are_durations() -> None:
    assert [parse_budget(text) for text in ("40m", "90s", "1h", "0.5m")] == [2400, 90, 3600, 30]
    for text in ("40", "m", "-1m", "0m", "1d"):
        with pytest.raises(RobustCliError, match=rf"--budget: found '{text}'; expected .* 40m"):
            parse_budget(text)


@pytest.mark.slow
def test_trainings_keep_to_the_budget_and_are_not_repeated(sweep: Path) -> None:
    folder, out = sweep.parent / "runs", sweep.parent / "out.json"
    words = ["bench", "speedrun", str(sweep), "seed=0", "--budget", "1.5s", "--runs", str(folder), "--out", str(out)]
    result = CliRunner().invoke(app, [*words, "--quiet"])
    assert result.exit_code == 0, result.output
    stored = json.loads(out.read_text())
    assert [found["row"]["row"] for found in stored["rows"]] == ["pgd_at", "candidate", "candidate_without_noise"]
    for found in stored["rows"]:
        # Measured in the middle of a training, whose first updates and checks differ a little.
        assert 0.3 < found["processor_seconds"][0] <= 1.7
        assert found["length"]["epochs"] == found["row"]["epochs"] > 1
    assert stored["budget_seconds"] == 1.5
    assert "torch" in stored["machine"]
    assert re.search(r"\| candidate \|.*[+-]\d+\.\d to pgd_at \|", result.output)
    assert re.search(r"\| candidate_without_noise \|.*[+-]\d+\.\d to candidate \|", result.output)
    again, watcher = run(sweep, 1.5, ("pgd_at", "candidate"))
    assert watcher.updates == 0
    assert [found.to_json() for found in again] == stored["rows"][:2]


def test_one_epoch_that_takes_too_long_gets_fewer_images() -> None:
    costs = Costs(start=1.0, update=1.25, end=1.0, updates=16, images=1000)
    # 94 % of the budget, less a second to start and, for each epoch, 20 s of updates and 1 s for its end.
    assert fitted_length(costs, 100, 64) == Length(epochs=4)
    assert fitted_length(costs, 10, 64) in [Length(epochs=1, train_size=size) for size in (369, 370)], (
        "but for rounding"
    )
    assert Length(epochs=1, train_size=370).overrides == ["train.epochs=1", "data.train_size=370"]
    with pytest.raises(RobustCliError, match=r"--budget: found 3 s; expected at least 4 s, which one update takes"):
        fitted_length(costs, 3, 64)
    # Reading the images takes longer than the budget and several epochs.
    with pytest.raises(RobustCliError, match=r"--budget: found 10 s; expected at least 109 s"):
        fitted_length(replace(costs, start=100.0), 10, 64)


def test_what_uses_up_the_budget_starts_again_with_fewer_epochs(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr(speedrun, "_processor_seconds", lambda: float(next(clock)))
    choose(monkeypatch, Length(epochs=6, train_size=300))
    (found,), watcher = run(sweep, 20.0)
    # Each look at the clock is a second, so the first attempt ends before its 6 x 5 updates.
    assert found.length == Length(epochs=3, train_size=300)
    assert found.row.epochs == 3
    assert watcher.updates > 3 * 5
    assert found.processor_seconds[0] <= 20 + 3
    # What was trained with a larger budget does not count.
    with pytest.raises(RobustCliError, match=r"row pgd_at: the budget was used up .* expected a larger --budget"):
        run(sweep, 1.0)


def test_lengths_are_shortened_to_whole_epochs_or_to_fewer_images() -> None:
    assert Length(epochs=6, train_size=300).shortened(0.6, 64) == Length(epochs=3, train_size=300)
    assert Length(epochs=1, train_size=300).shortened(0.6, 64) == Length(epochs=1, train_size=180)
    assert Length(epochs=2, train_size=300).shortened(0.4, 64) == Length(epochs=1, train_size=240)
    assert Length(epochs=1).shortened(0.9, 64) is None
    assert Length(epochs=1, train_size=100).shortened(0.6, 64) is None


def test_one_epoch_that_uses_up_the_budget_starts_again_with_fewer_images(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr(speedrun, "_processor_seconds", lambda: float(next(clock)))
    choose(monkeypatch, Length(epochs=1, train_size=1200))
    (found,), _ = run(sweep, 14.0)
    assert found.length.epochs == 1
    assert found.length.train_size is not None
    assert 400 < found.length.train_size < 1000


def test_an_interrupted_training_goes_on_with_the_time_that_it_has_used(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(monkeypatch, Length(epochs=3, train_size=300))

    class Stopped(Silent):
        def epoch(self, record: Record) -> None:
            if record.epoch == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        speedrun.run_speedrun(sweep, ["seed=0"], ["pgd_at"], 60, sweep.parent / "runs", Stopped(), lambda text: None)
    (file,) = (sweep.parent / "runs").rglob("processor.json")
    file.write_text('{"processor_seconds": 50.0}')
    monkeypatch.setattr(speedrun, "measured_costs", None)
    (found,), watcher = run(sweep, 60)
    assert watcher.updates < 3 * 5
    assert 50 < found.processor_seconds[0] < 60
    file.unlink()
    with pytest.raises(RobustCliError, match="not trained by a speedrun"):
        run(sweep, 60)


def test_only_processors_count(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep.write_text(SWEEP.replace("device: cpu", "device: auto"), encoding="utf-8")
    monkeypatch.setattr(speedrun, "choose_device", lambda name, key: torch.device("cuda"))
    with pytest.raises(RobustCliError, match=r"row pgd_at: .* expected train.device=cpu"):
        run(sweep, 60)


def test_rows_that_nothing_compares_are_refused_before_training(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speedrun, "measured_costs", None)
    begin, end = SWEEP.index("  evaluate:"), SWEEP.index("rows:")
    sweep.write_text(SWEEP[:begin] + SWEEP[end:], encoding="utf-8")
    with pytest.raises(RobustCliError, match=r"tiny\.yaml: the rows have no evaluation in common"):
        run(sweep, 60, ())


def test_rows_without_results_are_told_and_not_compared(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, Length(epochs=1, train_size=64))
    found, _ = run(sweep, 60, ("pgd_at", "candidate"))
    assert " to pgd_at |" in table(found)
    broken = found[0].model_copy(deep=True)
    broken.row.evaluations.update(clean=[], autoattack=[])
    broken.row.failures["0"] = "the loss is not finite"
    text = table([broken, found[1]])
    assert "| pgd_at | 1 | 64 |" in text
    assert "failed | failed |  |" in text
    assert " to pgd_at" not in text
    assert text.endswith("\n- pgd_at, seed 0: failed: the loss is not finite.\n")


def test_the_shipped_speedrun_has_baselines_and_a_candidate_with_ablations() -> None:
    rows = Sweep.read(experiments.find("speedrun/cifar10_jpeg")).rows
    names = [row.name for row in rows]
    assert names[:6] == ["pgd_at", "trades", "rs_fgsm", "n_fgsm", "free", "candidate"]
    assert all(name.startswith("candidate_") for name in names[6:])
    assert all([spec.seed for spec in row.specs] == [0, 1, 2] and not row.specs[0].warnings() for row in rows)


def test_processes_that_train_other_rows_keep_each_others_lengths(sweep: Path) -> None:
    first, second = Lengths(sweep.parent / "lengths.json", 60), Lengths(sweep.parent / "lengths.json", 60)
    one, other, _ = Sweep.read(sweep, [], []).rows
    first.put(one, Length(epochs=1))
    second.put(other, Length(epochs=2))
    first.put(one, Length(epochs=3))
    assert (second.get(one), first.get(other)) == (Length(epochs=3), Length(epochs=2))
