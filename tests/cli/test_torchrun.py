"""torchrun and --devices start the processes and pass on their exit codes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from killing import Sessions
from shell import Robust, environment
from test_ranked_training import session_in
from test_resume import TRADES, outcome, the_run

from robustcli.store.checkpoint import ResumableCheckpoint
from robustcli.store.files import read_json
from robustcli.store.runs import RunFolder

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def start(folder: Path, *words: str, spec: str = TRADES) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    (folder / "spec.yaml").write_text(spec, encoding="utf-8")
    with (folder / "log").open("w", encoding="utf-8") as log:
        return subprocess.Popen(words, cwd=folder, env=environment(), stdout=log, stderr=log, text=True)


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """Child processes that run `robust train`, by process number."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()
    found = {}
    for child in children:
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        found |= {word: int(child) for word in variables if word.startswith(b"RANK=")}
    return [found[rank] for rank in sorted(found)]


def session_of_one(folder: Path) -> Sessions:
    (folder / "spec.yaml").write_text(TRADES, encoding="utf-8")
    return Sessions(folder)


def wait_for_epochs(folder: Path, count: int, is_alive: Callable[[], bool]) -> None:
    """Wait until a number of epochs are done."""
    for _ in range(1200):
        logs = list(folder.glob("runs/*/*/train.jsonl"))
        if logs and logs[0].read_text(encoding="utf-8").count("\n") >= count:
            return
        assert is_alive()
        time.sleep(0.1)
    raise AssertionError("no epoch was done")


def wait_until_both_attack_shards(process: subprocess.Popen[str]) -> None:
    """Wait until each of two processes has locked a shard of an evaluation."""
    seen: set[int] = set()
    while len(seen) < 2:
        assert process.poll() is None, f"ended; processes that attacked a shard: {seen}"
        with suppress(FileNotFoundError, ProcessLookupError):
            seen |= {worker for worker in workers_of(process) if any("/shards/" in name for name in open_files(worker))}
        time.sleep(0.01)


def open_files(process: int) -> list[str]:
    return [os.readlink(file) for file in Path(f"/proc/{process}/fd").iterdir()]


# Processes that are started again as torchrun does it are in test_ranked_training.py.
@pytest.mark.full
def test_a_killed_process_is_started_again_and_resumes(tmp_path: Path) -> None:
    words = ["train", "spec.yaml", "--quiet", "train.epochs=12"]
    whole = session_in(tmp_path / "whole")
    assert whole.run(*words) == [0, 0]
    killed = start(tmp_path / "killed", *TORCHRUN, "--max-restarts", "1", "-m", "robustcli", *words)
    wait_for_epochs(tmp_path / "killed", 2, lambda: killed.poll() is None)
    os.kill(workers_of(killed)[1], signal.SIGKILL)
    assert killed.wait(300) == 0, (tmp_path / "killed" / "log").read_text(encoding="utf-8")
    assert len(read_json(the_run(tmp_path / "killed").provenance)["sessions"]) == 2
    assert outcome(tmp_path / "killed") == outcome(whole.folder)


@pytest.mark.full
def test_two_processes_share_an_evaluation(robust: Robust, trained: RunFolder, tmp_path: Path) -> None:
    words = ["eval", str(trained.best), "--attack", "apgd", "--steps", "200", "--eps", "0.02", "--quiet"]
    robust(*words, "--store", "alone").require(0)
    shared = start(tmp_path, *TORCHRUN, "-m", "robustcli", *words, "--store", "shared")
    wait_until_both_attack_shards(shared)
    assert shared.wait(120) == 0, (tmp_path / "log").read_text(encoding="utf-8")
    alone, together = (read_json(next(tmp_path.glob(f"{store}/*/results.json"))) for store in ("alone", "shared"))
    survivors = alone["evaluations"]["apgd"]["survivors"]
    assert set(survivors) == {"0", "1"}
    assert together["evaluations"]["apgd"]["survivors"] == survivors


@pytest.mark.slow
def test_a_signal_to_the_command_stops_all_devices(tmp_path: Path) -> None:
    words = ["train", "spec.yaml", "--quiet", "train.epochs=200", "--devices", "2"]
    sessions = session_of_one(tmp_path)
    process = sessions.start(*words)
    wait_for_epochs(tmp_path, 1, process.is_alive)
    process.terminate()
    assert sessions.end_of(process) == 3, sessions.log.read_text(encoding="utf-8")
    run = the_run(tmp_path)
    assert ResumableCheckpoint.read(run.last).training.updates >= 4
    assert read_json(run.provenance)["sessions"][0]["processes"] == 2


@pytest.mark.slow
def test_devices_end_with_the_exit_code_of_their_processes(tmp_path: Path) -> None:
    sessions = session_of_one(tmp_path)
    assert sessions.run("train", "spec.yaml", "data.train_size=33", "--devices", "2") == 2
    assert "too few for 2 processes" in sessions.log.read_text(encoding="utf-8")


def test_more_processes_than_processors_are_refused(tmp_path: Path) -> None:
    sessions = session_of_one(tmp_path)
    assert sessions.run("train", "spec.yaml", "--devices", str((os.cpu_count() or 1) + 1), "train.device=cpu") == 2
    assert "expected at most" in sessions.log.read_text(encoding="utf-8")
