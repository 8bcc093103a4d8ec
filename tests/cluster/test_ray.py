"""Sweeps and evaluations as tasks of a real Ray, whose processes are killed."""

import os
import signal
from pathlib import Path

import pytest
import same
from conftest import Cluster, Local, ended, epochs, evaluation, wait

pytestmark = pytest.mark.cluster


def processes(name: str) -> list[int]:
    """Processes of Ray that run a task of this name."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            title = path.read_bytes()
        except OSError:
            continue
        if title.startswith(f"ray::{name}".encode()):
            found.append(int(path.parent.name))
    return found


def test_a_sweep_whose_process_is_killed_equals_the_local_one(ray_machine: Cluster, local: Local) -> None:
    sweep = ray_machine.start("sweep", "family.yaml", "--engine", "ray")
    wait(lambda: [*ray_machine.folder.glob("runs/family.long/*/train.jsonl")])
    (log,) = ray_machine.folder.glob("runs/family.long/*/train.jsonl")
    wait(lambda: epochs(log) > 2)
    (process,) = processes("family.long")
    os.kill(process, signal.SIGKILL)
    out, err = ended(sweep)
    assert "family.natural-s0: done" in err
    assert same.table(out) == same.table(local.table)
    assert same.results(ray_machine.folder / "runs") == {
        name: found for name, found in same.results(local.folder / "runs").items() if name.startswith("family")
    }


def test_an_interrupted_sweep_prints_how_to_resume(ray_machine: Cluster) -> None:
    sweep = ray_machine.start("sweep", "family.yaml", "train.epochs=5000", "--row", "long", "--engine", "ray")
    wait(lambda: any(epochs(log) > 2 for log in ray_machine.folder.glob("runs/family.long/*/train.jsonl")))
    sweep.terminate()
    assert "stopped by SIGTERM; run the same command again to resume" in ended(sweep, 3)[1]


def test_an_evaluation_whose_worker_is_killed_is_complete(ray_machine: Cluster, local: Local) -> None:
    evaluating = ray_machine.start(*evaluation(local.folder), "--engine", "ray", "--workers", 2)
    wait(lambda: [*ray_machine.folder.glob("evals/*/evaluations/*.journal/*.npz")])
    os.kill(processes("eval-")[0], signal.SIGKILL)
    ended(evaluating)
    assert same.evaluations(ray_machine.folder / "evals") == same.close_to(same.evaluations(local.folder / "evals"))
