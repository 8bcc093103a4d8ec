"""Processes of one evaluation share the available cores."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.distributed.launcher.api import LaunchConfig

from robustcli.errors import RobustCliError
from robustcli.evaluation.workers import _share, device_of
from robustcli.runtime import launch
from robustcli.runtime.process_group import joined
from robustcli.runtime.ranks import Share, own_device, share_of_torchrun
from robustcli.runtime.signals import STOPPING
from robustcli.workflows.slurm import NOTICE


@pytest.mark.parametrize(("threads", "count", "expected"), [(6, 2, 3), (6, 4, 1), (1, 4, 1)])
def test_workers_share_the_threads_of_one_process(
    threads: int, count: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Affinity and OMP_NUM_THREADS may restrict a process to fewer cores than the machine has."""
    taken: list[int] = []
    seen: list[Share] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    _share(lambda _wish, share: seen.append(share), None, (1, count))
    assert (taken, seen) == ([expected], [(1, count)])


@pytest.mark.parametrize(("rank", "world"), [("", ""), ("", "2"), ("0", ""), ("0", "1"), (" ", " ")])
def test_empty_variables_of_torchrun_and_a_single_process_are_no_share(
    rank: str, world: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    assert share_of_torchrun() is None


@pytest.mark.parametrize(
    ("rank", "world"), [("a", "2"), ("-1", "2"), ("2", "2"), ("0", "0"), ("\u00b2", "3"), ("9" * 5000, "9" * 5001)]
)
def test_variables_that_torchrun_does_not_set_are_refused(
    rank: str, world: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(RobustCliError, match="expected numbers as torchrun sets them") as caught:
        share_of_torchrun()
    assert len(str(caught.value)) < 500


def test_a_share_without_an_address_to_meet_at_is_refused_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "1", "MASTER_ADDR": ""}.items():
        monkeypatch.setenv(name, value)
    assert share_of_torchrun() == (0, 2)
    with pytest.raises(RobustCliError, match="without MASTER_ADDR"), joined():
        pass


def test_a_place_where_the_processes_cannot_meet_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        for port in (str(other.getsockname()[1]), "abc", "99999"):
            for name, value in {
                "RANK": "0",
                "WORLD_SIZE": "2",
                "MASTER_PORT": port,
                "MASTER_ADDR": "127.0.0.1",
            }.items():
                monkeypatch.setenv(name, value)
            with pytest.raises(RobustCliError, match=f"MASTER_PORT={port}: the processes cannot meet there"), joined():
                pass


@pytest.fixture
def configurations(monkeypatch: pytest.MonkeyPatch) -> list[LaunchConfig]:
    """Configurations of torch with which processes would be started."""
    found: list[LaunchConfig] = []

    def started(config: LaunchConfig, _program: str) -> Callable[..., None]:
        found.append(config)
        return lambda *_: None

    for name in ("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
        monkeypatch.delenv(name)
    monkeypatch.setattr(launch, "elastic_launch", started)
    return found


def test_started_processes_have_time_to_save_a_checkpoint(configurations: list[LaunchConfig]) -> None:
    """torch kills them 30 s after a signal, in the middle of a long update or of the check of an epoch."""
    assert launch.launch(["train"], 2) == 0
    (configuration,) = configurations
    if not hasattr(configuration, "shutdown_timeout"):
        pytest.skip("this version of torch always waits for 30 s")
    assert configuration.shutdown_timeout == STOPPING > NOTICE


@pytest.mark.parametrize(("handler", "is_handled"), [(signal.SIG_DFL, True), (signal.SIG_IGN, False)])
def test_started_processes_outlive_the_terminal_under_nohup(
    handler: signal.Handlers, is_handled: bool, configurations: list[LaunchConfig]
) -> None:
    before = signal.signal(signal.SIGHUP, handler)
    try:
        assert launch.launch(["train"], 2) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    (configuration,) = configurations
    if not hasattr(configuration, "signals_to_handle"):
        pytest.skip("this version of torch always handles SIGHUP")
    assert ("SIGHUP" in configuration.signals_to_handle) == is_handled
    assert "SIGTERM" in configuration.signals_to_handle


@pytest.mark.parametrize("local", ["", "x", "9" * 5000])
def test_an_odd_local_rank_is_passed_over(local: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", local)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert device_of((6, 8), "auto") == "cuda:2"
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": local}.items():
        monkeypatch.setenv(name, value)
    assert own_device("auto") == "cuda:0"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux whether a process is alive")
def test_a_worker_ends_with_the_process_that_started_it() -> None:
    """A surviving worker would write into a journal that a resumed command uses or has removed."""
    code = (
        "import multiprocessing, time\n"
        "from robustcli.evaluation.workers import _share\n"
        "start = multiprocessing.get_context('fork').Process\n"
        "worker = start(target=_share, args=(lambda *_: time.sleep(60), None, (0, 1)))\n"
        "worker.start()\n"
        "print(worker.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
    begun = time.monotonic()
    while is_alive(worker) and time.monotonic() - begun < 20:
        time.sleep(0.02)
    assert not is_alive(worker)


def is_alive(pid: int) -> bool:
    """Whether a process runs; zombies do not count."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
