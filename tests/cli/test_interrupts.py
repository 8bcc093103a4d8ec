"""Ctrl-C in commands that keep nothing to resume: one line and exit code 130."""

import multiprocessing
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from shell import Robust, environment

from robustcli import __main__ as entry
from robustcli.bench.worker import Worker, messages
from robustcli.cli.main import main
from robustcli.store.runs import RunFolder


@pytest.fixture(autouse=True)
def as_in_a_terminal() -> Iterator[None]:
    """Handle Ctrl-C as in a terminal; a shell starts background commands with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def pressed(*_: object, **__: object) -> None:
    signal.raise_signal(signal.SIGINT)
    pytest.fail("the signal was ignored")


@pytest.mark.parametrize(
    ("words", "inside"),
    [
        (("plan", "tiny.yaml"), "robustcli.workflows.plan.plan.plan"),
        (("plan", "tiny.yaml", "seed=0,1"), "robustcli.workflows.plan.rows.plan"),
        (("bench", "train"), "robustcli.bench.train.bench_train"),
        (("verify", "runs"), "robustcli.workflows.verify.verify_folder"),
        (("report", "."), "robustcli.reports.summary.read_sources"),
        (("validate", "tiny.yaml"), "robustcli.specs.spec.ExperimentSpec.read"),
    ],
)
def test_ctrl_c_is_one_line(
    robust: Robust, tiny: Path, monkeypatch: pytest.MonkeyPatch, words: Sequence[str], inside: str
) -> None:
    monkeypatch.setattr(inside, pressed)
    before = signal.getsignal(signal.SIGINT)
    said = robust(*words).require(130)
    lines = said.err.splitlines()
    assert (said.out, lines[-1], lines.count("interrupted")) == ("", "interrupted", 1)
    assert signal.getsignal(signal.SIGINT) is before


def test_an_evaluation_still_ends_as_one_that_can_be_resumed(
    robust: Robust, trained: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robustcli.workflows.evaluate.Case.finish", pressed)
    robust("eval", trained.best, "--attack", "fgsm", "-n", 20).require(3, "run the same command again to resume")


def test_ctrl_c_while_the_command_is_imported_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Pressing(ModuleType):
        @property
        def main(self) -> object:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "robustcli.cli.main", Pressing("main"))
    with pytest.raises(SystemExit) as end:
        entry.main()
    assert (end.value.code, capsys.readouterr().err) == (130, "interrupted\n")
    assert entry.main is not main


LOST = """
import signal, sys, time, weakref
from robustcli.cli import main
from robustcli.reports import summary

signal.signal(signal.SIGINT, signal.default_int_handler)

def read(folders):
    class Held: pass
    held = Held()
    kept = weakref.ref(held, lambda _: signal.raise_signal(signal.SIGINT))
    del held  # The KeyboardInterrupt is raised in the callback, and lost.
    time.sleep(60)

summary.read_sources = read
main._PATIENCE = 0.5
sys.argv = ["robust", "report", "."]
main.main()
"""


def test_an_interrupt_that_is_lost_in_a_callback_ends_the_command_all_the_same() -> None:
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", LOST], env=environment(), capture_output=True, text=True, check=False, timeout=50
    )
    assert done.returncode == 130
    assert done.stderr.endswith("\ninterrupted\n")
    assert time.monotonic() - begun < 40


def busy(pipe: Any) -> None:
    for _ in messages(pipe):
        pipe.send(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)
        time.sleep(60)


def test_processes_of_a_benchmark_end_with_it() -> None:
    def measure() -> None:
        with Worker[bool](busy) as worker:
            # A terminal sends Ctrl-C to all processes; only the first one handles it.
            assert worker.ask("begin")
            raise KeyboardInterrupt

    # Other tests may have left some.
    before = set(multiprocessing.active_children())
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        measure()
    assert time.monotonic() - begun < 40
    assert set(multiprocessing.active_children()) <= before
