"""A run that is killed anywhere and resumed is bit-identical to an uninterrupted one."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import ALL_KINDS, Plan, Sessions
from products import cover, products
from shell import environment

from robustcli.cli.progress import Screen
from robustcli.errors import Interrupted
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.checkpoint import ResumableCheckpoint
from robustcli.store.files import read_json
from robustcli.store.runs import RunFolder
from robustcli.training import collapse
from robustcli.workflows.train import run_experiment

TRADES = """\
# TRADES with a weight perturbation and an average, on images that change with every epoch.
name: resumed
data: {name: digits, val_size: 40, train_size: 100, augment: {crop: 1, flip: true, cutout: 2}}
architecture: {name: small_cnn, width: 4, hidden: 16}
threat: {norm: linf, eps: 0.1}
defense: {name: trades, steps: 2, weights: {name: awp, gamma: 0.01}, averaging: {name: ema, decay: 0.9, warmup: 1}}
train:
  epochs: 3
  batch_size: 32
  lr: 1e-2
  optimizer: adam
  schedule: {name: cosine, warmup: 1}
  eps_warmup: 2
  grad_clip: 1.0
  select: robust
  check_examples: 20
  check_steps: 2
  device: cpu
evaluate:
  clean: {name: clean, examples: 40}
  pgd: {name: attack, attack: {name: pgd, steps: 3, keep: fooled}, examples: 40}
"""
SWA = """\
# An average of epochs whose batch statistics are estimated anew.
name: resumed
seed: 7
data: {name: digits, train_size: 100, augment: {crop: 1}}
architecture: {name: wide_resnet, depth: 10, widen: 1}
threat: {norm: l2, eps: 0.5}
defense: {name: pgd_at, steps: 1, attack_bn: train, averaging: {name: swa, start_epoch: 1}}
train:
  epochs: 3
  batch_size: 32
  lr: 0.05
  schedule: piecewise
  check_examples: 10
  check_steps: 1
  device: cpu
evaluate:
  clean: {name: clean, examples: 40}
"""
FREE = """\
# A perturbation that is carried from update to update: two batches, the second smaller, each replayed twice.
name: resumed
data: {name: digits, train_size: 100, augment: {crop: 1}}
architecture: {name: small_cnn, width: 4, hidden: 16}
threat: {norm: linf, eps: 0.1}
defense: {name: free, replays: 2, averaging: {name: ema, decay: 0.9}}
train:
  epochs: 3
  batch_size: 64
  lr: 0.05
  schedule: cyclic
  check_examples: 10
  check_steps: 1
  device: cpu
evaluate:
  clean: {name: clean, examples: 40}
"""
SPECS = {"trades_awp_ema": TRADES, "pgd_at_swa": SWA, "free_ema": FREE}


def the_run(folder: Path) -> RunFolder:
    (path,) = folder.glob("runs/*/*")
    return RunFolder(path)


def contents(path: Path) -> Any:
    """Everything in a checkpoint."""
    return torch.load(path, weights_only=True)


def without_seconds(value: Any) -> Any:
    """The value with tensors as bytes and without times, to compare two runs."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        if "links" in value:  # The chain has digests of files that contain times.
            return {name: value["links"][name] for name in ("spec.yaml", "weights", "data", "settings")}
        return {key: without_seconds(item) for key, item in value.items() if key != "seconds"}
    if isinstance(value, list | tuple):
        return [without_seconds(item) for item in value]
    return value


def outcome(folder: Path) -> dict[str, Any]:
    """All results of a run."""
    run = the_run(folder)
    files = {path.relative_to(run.path).as_posix() for path in run.path.rglob("*") if path.is_file()}
    provenance = read_json(run.provenance)
    return {
        "files": sorted(files - {"lock"}),
        "best": without_seconds(contents(run.best)),
        "last": without_seconds(contents(run.last)),
        "log": [without_seconds(json.loads(line)) for line in run.log.read_text(encoding="utf-8").splitlines()],
        # The chain covers provenance and times, too.
        "results": without_seconds({key: value for key, value in read_json(run.results).items() if key != "chain"}),
        "data": provenance["data"],
    }


def require_same(folder: Path, whole: dict[str, Any]) -> None:
    found = outcome(folder)
    assert found.keys() == whole.keys()
    for part in whole:
        assert found[part] == whole[part], part


Whole = tuple[str, dict[str, Any], int]


@pytest.fixture(scope="session")
def run_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Whole]:
    @cache
    def run(name: str) -> Whole:
        folder = tmp_path_factory.mktemp("uninterrupted")
        (folder / "spec.yaml").write_text(SPECS[name], encoding="utf-8")
        sessions = Sessions(folder)
        assert sessions.run("train", "spec.yaml", "-q", plan=Plan(ALL_KINDS)) == 0
        return SPECS[name], outcome(folder), sessions.events()

    return run


@pytest.fixture(params=list(SPECS))
def uninterrupted(request: pytest.FixtureRequest, run_once: Callable[[str], Whole]) -> Whole:
    """A spec, the result of its uninterrupted run, and the number of its events."""
    return run_once(request.param)


@pytest.fixture
def sessions(uninterrupted: Whole, tmp_path: Path) -> Sessions:
    (tmp_path / "spec.yaml").write_text(uninterrupted[0], encoding="utf-8")
    return Sessions(tmp_path)


WORDS = ("train", "spec.yaml", "-q")


@pytest.mark.slow
def test_a_run_that_is_not_interrupted_is_the_same_every_time(uninterrupted: Whole, sessions: Sessions) -> None:
    assert sessions.run(*WORDS) == 0
    require_same(sessions.folder, uninterrupted[1])
    assert len(uninterrupted[1]["log"]) == 3
    # The comparison means something: weights moved, and the average differs from the trained network.
    last = uninterrupted[1]["last"]
    assert last["weights"] != {key.replace("network.", ""): last["training"]["network"][key] for key in last["weights"]}


SLOW = pytest.mark.slow
# At "sync" the files are as at "rename", and at "renamed" as at the next write.
SHOWN = cover(list(SPECS), ["half", "rename"], strength=1)


@pytest.mark.parametrize(
    ("uninterrupted", "seed"),
    products(list(SPECS), [0, 1, 2], strength=1, marks=[SLOW]),
    indirect=["uninterrupted"],
)
def test_a_run_killed_at_random_points_ends_the_same(uninterrupted: Whole, sessions: Sessions, seed: int) -> None:
    rng = random.Random(seed)
    _, whole, events = uninterrupted
    assert events > 40
    # Three kills anywhere, also in the middle of a write; then it finishes.
    codes = sessions.until_done(
        *WORDS, plans=lambda number: Plan(ALL_KINDS, rng.randrange(2, 24)) if number < 3 else Plan()
    )
    assert codes.count(-signal.SIGKILL) >= 2
    require_same(sessions.folder, whole)


@pytest.mark.parametrize(
    ("uninterrupted", "kind"),
    [
        pytest.param(name, kind, marks=[SLOW, *([] if (name, kind) in SHOWN else [pytest.mark.full])])
        for name in SPECS
        for kind in ALL_KINDS[1:]
    ],
    indirect=["uninterrupted"],
)
def test_a_run_killed_whenever_it_writes_ends_the_same(uninterrupted: Whole, sessions: Sessions, kind: str) -> None:
    # Each session is killed one event later than the one before.
    codes = sessions.until_done(*WORDS, plans=lambda number: Plan((kind,), 3 * number + 1))
    assert set(codes[:-1]) <= {-signal.SIGKILL}
    assert len(codes) > 2
    require_same(sessions.folder, uninterrupted[1])


@SLOW
def test_a_run_killed_before_a_rename_and_stopped_when_resumed_keeps_its_best_weights(tmp_path: Path) -> None:
    # Killed between the writing of best.pt and the renaming of last.pt, at the end of the first epoch.
    for number in range(6, 16):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "spec.yaml").write_text(TRADES, encoding="utf-8")
        sessions = Sessions(folder)
        assert sessions.run(*WORDS, plan=Plan(("rename",), number)) == -signal.SIGKILL
        run = the_run(folder)
        if run.last.exists() and run.last.with_name("last.pt.writing").exists():
            break
    before = run.best.read_bytes()
    assert before != run.last.read_bytes()
    assert sessions.run(*WORDS, "--resume", plan=Plan(("step",), 1, signal.SIGTERM)) == 3
    assert run.best.read_bytes() == before
    assert not run.best.samefile(run.last)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("uninterrupted", "number"),
    products(list(SPECS), [signal.SIGTERM, signal.SIGINT], strength=1),
    indirect=["uninterrupted"],
)
def test_a_run_stopped_in_the_middle_of_an_epoch_ends_the_same(
    uninterrupted: Whole, sessions: Sessions, number: signal.Signals
) -> None:
    assert sessions.run(*WORDS, plan=Plan(("step",), 6, number)) == 3
    assert "stopped in epoch 2, after update 6; continue with --resume" in sessions.log.read_text(encoding="utf-8")
    stopped = the_run(sessions.folder)
    assert ResumableCheckpoint.read(stopped.last).training.updates == 6
    assert [record.epoch for record in stopped.records()] == [0]
    assert sessions.run(*WORDS) == 2  # only with --resume
    assert sessions.run(*WORDS, "--resume") == 0
    require_same(sessions.folder, uninterrupted[1])


@pytest.mark.parametrize(
    "uninterrupted", ["trades_awp_ema", *(pytest.param(name, marks=pytest.mark.full) for name in list(SPECS)[1:])],
    indirect=True,
)  # fmt: skip
@SLOW
def test_a_run_stopped_at_random_points_ends_the_same(uninterrupted: Whole, sessions: Sessions) -> None:
    rng = random.Random(2)
    # Not before the fifth event: until the folder is there, a signal has its usual effect.
    codes = sessions.until_done(
        *WORDS,
        plans=lambda number: Plan(ALL_KINDS, rng.randrange(5, 14), signal.SIGTERM) if number < 5 else Plan(),
    )
    assert codes == [3] * 5 + [0]
    require_same(sessions.folder, uninterrupted[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("uninterrupted", "update"), products(list(SPECS), [4, 12], strength=1), indirect=["uninterrupted"]
)
def test_a_run_stopped_at_the_last_update_of_an_epoch_ends_the_same(
    uninterrupted: Whole, sessions: Sessions, update: int
) -> None:
    assert sessions.run(*WORDS, plan=Plan(("step",), update, signal.SIGTERM)) == 3
    run = the_run(sessions.folder)
    assert not list(run.path.glob("evaluations/*"))
    assert sessions.run(*WORDS, "--resume") == 0
    require_same(sessions.folder, uninterrupted[1])


def test_a_stop_in_the_epoch_of_a_collapse_does_not_change_what_is_gone_back_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every check counts as a collapse, so the first epoch is undone.
    monkeypatch.setattr(collapse, "_DROP", -1.0)
    monkeypatch.setattr(collapse, "_GAP", -2.0)
    spec = ExperimentSpec.parse(TRADES.replace("epochs: 3", "epochs: 3\n  on_collapse: rewind"), "the test")
    whole = run_experiment(spec, tmp_path / "whole", Screen(is_quiet=True))

    class Stopping(Screen):
        def step(self, images: int) -> None:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        run_experiment(spec, tmp_path / "stopped", Stopping(is_quiet=True))
    stopped = run_experiment(spec, tmp_path / "stopped", Screen(is_quiet=True), resume=True)
    assert read_json(whole.results)["status"] == "rewound"
    assert without_seconds(contents(stopped.last)) == without_seconds(contents(whole.last))
    assert without_seconds(read_json(stopped.results)) == without_seconds(read_json(whole.results))


@pytest.mark.parametrize(
    "uninterrupted", list(SPECS), indirect=True,
)  # fmt: skip
@pytest.mark.full
def test_a_command_killed_from_outside_and_resumed_ends_the_same(uninterrupted: Whole, sessions: Sessions) -> None:
    # The command as a user starts it, killed after some time.
    command = [sys.executable, "-m", "robustcli", *WORDS]
    process = subprocess.Popen(
        [*command, "--resume"], cwd=sessions.folder, env=environment(), stderr=subprocess.DEVNULL
    )
    begun = time.monotonic()
    while time.monotonic() - begun < 60 and process.poll() is None:
        if list(sessions.folder.glob("runs/*/*/checkpoints/*")):
            break
        time.sleep(0.01)
    time.sleep(0.05)
    process.kill()
    process.wait()
    subprocess.run([*command, "--resume"], cwd=sessions.folder, env=environment(), check=True)
    require_same(sessions.folder, uninterrupted[1])
