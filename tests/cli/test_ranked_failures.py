"""One of several processes fails, or differs from the others: all end, and the cause is reported."""

import os
import socket
import sys
import time
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest.mock import patch

import forked
import pytest

from robustcli.errors import Interrupted, RobustCliError
from robustcli.runtime import process_group, ranks

pytestmark = pytest.mark.slow


def started(folder: Path, devices: tuple[str, str], variables: Mapping[str, str] = {}) -> list[BaseProcess]:
    """Start two processes that work together on devices of these types; the second one fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": "2"}
    return [
        forked.process(_fail, {**place, **variables, "RANK": str(rank)}, device, str(log_of(folder, rank)))
        for rank, device in enumerate(devices)
    ]


def log_of(folder: Path, rank: int) -> Path:
    return folder / f"{rank}.log"


def ended(folder: Path, processes: list[BaseProcess]) -> tuple[list[int | None], list[str]]:
    """Exit codes and errors of processes."""
    for process in processes:
        process.join(120)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes, [log_of(folder, rank).read_text(encoding="utf-8") for rank in range(len(processes))]


def _fail(variables: Mapping[str, str], device: str, log: str) -> None:
    os.environ.update(variables)
    with (
        # As on GPUs, without GPUs.
        patch.object(process_group, "backend", lambda device: "cpu:gloo,cuda:gloo" if device == "cuda" else "gloo"),
        patch.object(process_group, "_LEAVING", 30.0),
    ):
        try:
            with process_group.joined(device):
                ranks.wait()
                if not ranks.is_first():
                    raise RobustCliError("only here")
                ranks.wait()
        except (RobustCliError, Interrupted) as error:
            Path(log).write_text(str(error), encoding="utf-8")
            sys.exit(3 if isinstance(error, Interrupted) else 2)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_error_of_one_process_ends_the_other_which_says_why(device: str, tmp_path: Path) -> None:
    codes, errors = ended(tmp_path, started(tmp_path, (device, device)))
    assert codes == [3, 2]
    assert errors[1] == "only here"
    # With the words of the backend, which are all there is to know if it failed by itself.
    assert errors[0].startswith("another process of this command ended, so this one ends too (RuntimeError: ")


def test_the_process_that_failed_is_the_first_to_end(tmp_path: Path) -> None:
    """torchrun passes on its exit code and ends the others."""
    processes = started(tmp_path, ("cpu", "cpu"), {"TORCHELASTIC_RUN_ID": "1"})
    processes[1].join(120)
    assert processes[1].exitcode == 2
    time.sleep(3)
    assert processes[0].is_alive()
    processes[0].terminate()
    processes[0].join(60)


@pytest.mark.parametrize("devices", [("cuda", "cpu"), ("cpu", "cuda")])
def test_processes_with_and_without_a_gpu_are_refused(devices: tuple[str, str], tmp_path: Path) -> None:
    """They would wait for each other in collectives of different backends."""
    codes, errors = ended(tmp_path, started(tmp_path, devices))
    assert codes == [2, 2]
    for error in errors:
        assert f"only some of the 2 processes have a GPU (none in process {devices.index('cpu')})" in error
