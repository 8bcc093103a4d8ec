"""`train.log` reports every epoch once, also after an interruption; a failing log does not stop training."""

import csv
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from shell import Robust

from robustcli.errors import Interrupted
from robustcli.store import sinks
from robustcli.store.runs import RunFolder
from robustcli.training import loop


def only_run() -> RunFolder:
    (folder,) = Path("runs/tiny").iterdir()
    return RunFolder(folder)


def test_a_csv_file_has_one_line_per_epoch(robust: Robust, tiny: Path) -> None:
    before = robust("validate", tiny).require(0).out
    assert robust("validate", tiny, "train.log=[csv]").require(0).out == before, "a log changes the digest"
    robust("train", tiny, "--quiet", "train.log=[csv]").require(0)
    run = only_run()
    with (run.path / "train.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    epochs = run.epochs()
    assert [int(row["epoch"]) for row in rows] == [epoch.epoch for epoch in epochs]
    assert [float(row["loss"]) for row in rows] == [epoch.measures["loss"] for epoch in epochs]


def fake_wandb(monkeypatch: pytest.MonkeyPatch, *, fails: bool = False) -> list[Any]:
    """A module that records its calls."""
    calls: list[Any] = []

    def log(values: dict[str, float], step: int) -> None:
        if fails:
            raise ConnectionError("no network")
        calls.append((step, values))

    run = types.SimpleNamespace(log=log, finish=lambda: calls.append("finish"))
    module = types.ModuleType("wandb")
    module.init = lambda **settings: calls.append(settings) or run  # type: ignore[attr-defined, func-returns-value]
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(sinks, "find_spec", lambda _name: object())
    return calls


def test_a_resumed_training_continues_its_log(robust: Robust, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_wandb(monkeypatch)
    update = loop._update

    def interrupted(training: Any, *rest: Any) -> None:
        update(training, *rest)
        if training.updates == 3:
            raise Interrupted("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_update", interrupted)
        robust("train", tiny, "--quiet", "train.log=[wandb]").require(3)
    robust("train", tiny, "--quiet", "train.log=[wandb]", "--resume").require(0)
    opened = [call for call in calls if isinstance(call, dict)]
    assert len(opened) == 2
    assert opened[0]["id"] == opened[1]["id"]
    assert opened[1]["resume"] == "allow"
    steps = [call[0] for call in calls if isinstance(call, tuple)]
    assert steps == [epoch.epoch for epoch in only_run().epochs()]
    assert all("loss" in call[1] for call in calls if isinstance(call, tuple))
    assert calls[-1] == "finish"


def test_a_log_that_fails_is_left_out(robust: Robust, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_wandb(monkeypatch, fails=True)
    with pytest.warns(UserWarning, match=r"train\.log: wandb failed and is dropped \(ConnectionError: no network\)"):
        robust("train", tiny, "--quiet", "train.log=[wandb, csv]").require(0)
    assert "finish" not in calls
    assert (only_run().path / "train.csv").is_file()


def test_a_package_that_is_missing_is_named_before_anything_runs(
    robust: Robust, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks, "find_spec", lambda _name: None)
    robust("train", tiny, "train.log=[trackio]").require(2, "train.log: trackio needs the package trackio")
    assert not Path("runs").exists()
    robust("train", tiny, "train.log=[tensorbord]").require(2, "did you mean 'tensorboard'?")


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_the_real_package_takes_the_epochs(
    name: str, robust: Robust, tiny: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # They are read at import.
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip(name)
    robust("train", tiny, "--quiet", f"train.log=[{name}]").require(0)
    files = {"tensorboard": "tensorboard/events.out.*", "wandb": "wandb/offline-run-*", "trackio": "../../../trackio/*"}
    assert list(only_run().path.glob(files[name]))
