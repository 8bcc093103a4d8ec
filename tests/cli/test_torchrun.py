"""torchrun itself, and --devices, start the processes and pass on how they end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from shell import environment
from test_resume import TRADES, outcome, the_run

from robustcli.store import checkpoint
from robustcli.store.files import read_json

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ROBUST = [sys.executable, "-m", "robustcli"]


def start(folder: Path, *words: str, spec: str = TRADES) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    (folder / "spec.yaml").write_text(spec, encoding="utf-8")
    with (folder / "log").open("w", encoding="utf-8") as log:
        return subprocess.Popen(words, cwd=folder, env=environment(), stdout=log, stderr=log, text=True)


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """Processes that a process has started and that run `robust train`, in the order of their numbers."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()
    found = {}
    for child in children:
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        found |= {word: int(child) for word in variables if word.startswith(b"RANK=")}
    return [found[rank] for rank in sorted(found)]


def wait_for_epochs(folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Wait until so many epochs are done."""
    for _ in range(1200):
        logs = list(folder.glob("runs/*/*/train.jsonl"))
        if logs and logs[0].read_text(encoding="utf-8").count("\n") >= count:
            return
        assert process.poll() is None, (folder / "log").read_text(encoding="utf-8")
        time.sleep(0.1)
    raise AssertionError("no epoch was done")


@pytest.mark.slow
def test_a_killed_process_is_started_again_and_resumes(tmp_path: Path) -> None:
    words = ["train", "spec.yaml", "--quiet", "train.epochs=12"]
    whole = start(tmp_path / "whole", *TORCHRUN, "-m", "robustcli", *words)
    assert whole.wait(300) == 0, (tmp_path / "whole" / "log").read_text(encoding="utf-8")
    killed = start(tmp_path / "killed", *TORCHRUN, "--max-restarts", "1", "-m", "robustcli", *words)
    wait_for_epochs(tmp_path / "killed", 2, killed)
    os.kill(workers_of(killed)[1], signal.SIGKILL)
    assert killed.wait(300) == 0, (tmp_path / "killed" / "log").read_text(encoding="utf-8")
    assert len(read_json(the_run(tmp_path / "killed").provenance)["sessions"]) == 2
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_a_signal_to_the_command_stops_all_devices(tmp_path: Path) -> None:
    words = ["train", "spec.yaml", "--quiet", "train.epochs=200", "--devices", "2"]
    process = start(tmp_path, *ROBUST, *words)
    wait_for_epochs(tmp_path, 1, process)
    process.send_signal(signal.SIGTERM)
    text = (tmp_path / "log").read_text(encoding="utf-8")
    assert process.wait(120) == 3, text
    run = the_run(tmp_path)
    assert checkpoint.load(run.last)["training"]["updates"] >= 4
    assert read_json(run.provenance)["sessions"][0]["processes"] == 2


@pytest.mark.slow
def test_devices_end_with_the_exit_code_of_their_processes(tmp_path: Path) -> None:
    process = start(tmp_path, *ROBUST, "train", "spec.yaml", "data.train_size=33", "--devices", "2")
    assert process.wait(120) == 2
    text = (tmp_path / "log").read_text(encoding="utf-8")
    assert "too few for 2 processes" in text
    assert "Traceback" not in text


@pytest.mark.slow
def test_processes_share_an_evaluation(tmp_path: Path) -> None:
    train = start(tmp_path, *ROBUST, "train", "spec.yaml", "--quiet")
    assert train.wait(120) == 0
    words = ["eval", str(the_run(tmp_path).best), "--attack", "pgd", "--steps", "5"]
    alone = start(tmp_path, *ROBUST, *words, "--store", "alone")
    assert alone.wait(120) == 0
    shared = start(tmp_path, *TORCHRUN, "-m", "robustcli", *words, "--store", "shared")
    assert shared.wait(120) == 0, (tmp_path / "log").read_text(encoding="utf-8")
    found = [read_json(next(tmp_path.glob(f"{store}/*/results.json"))) for store in ("alone", "shared")]
    survivors = [[result["survivors"] for result in one["evaluations"].values()] for one in found]
    assert survivors[0] == survivors[1]
    (path,) = tmp_path.glob("shared/*/results.json")
    before = path.stat().st_ino
    again = start(tmp_path, *TORCHRUN, "-m", "robustcli", *words, "--store", "shared", "--fresh")
    assert again.wait(120) == 0, (tmp_path / "log").read_text(encoding="utf-8")
    assert path.stat().st_ino != before
    assert [result["survivors"] for result in read_json(path)["evaluations"].values()] == survivors[0]
