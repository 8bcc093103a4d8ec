"""Runs `robust` in processes that are killed at chosen points.

The processes are forked from one that has already imported torch, which saves seconds.
"""

import io
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import forked
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from robustcli.cli.main import main


@dataclass(frozen=True)
class Plan:
    """When a process is killed.

    Args:
        kinds: the events that are counted: "step" (an update is made), "half" (half a checkpoint is written),
            "sync", "rename", "renamed".
        at: number of the event of these kinds at which the process is killed, from 1; 0: never.
        by: the signal.
    """

    kinds: tuple[str, ...] = ()
    at: int = 0
    by: signal.Signals = signal.SIGKILL


ALL_KINDS = ("step", "half", "sync", "rename", "renamed")


class Events:
    """Counts the events of a process, stores the count and kills the process as planned."""

    def __init__(self, plan: Plan, tally: Path) -> None:
        self.plan = plan
        self.tally = tally
        self.count = 0

    def happens(self, kind: str) -> bool:
        """Count an event; return whether the process is to be killed at it."""
        if kind not in self.plan.kinds:
            return False
        self.count += 1
        self.tally.write_text(str(self.count), encoding="utf-8")
        return self.count == self.plan.at

    def pass_by(self, kind: str) -> None:
        if self.happens(kind):
            self.end()

    def end(self) -> None:
        os.kill(os.getpid(), self.plan.by)

    def around(self, owner: Any, name: str, before: str, after: str) -> None:
        """Count an event before and one after each call of a function."""
        usual = getattr(owner, name)

        def call(*words: Any, **options: Any) -> Any:
            self.pass_by(before)
            value = usual(*words, **options)
            self.pass_by(after)
            return value

        setattr(owner, name, call)


def _work(words: Sequence[str], folder: str, plan: Plan, log: str, tally: str) -> None:
    """Run `robust` and count its events; the body of a process."""
    forked.write_to(Path(log), Path(log))
    os.chdir(folder)
    torch.set_num_threads(1)
    events = Events(plan, Path(tally))
    usual_save = torch.save

    def save(value: Any, file: Any, *others: Any, **options: Any) -> None:
        whole = io.BytesIO()
        usual_save(value, whole, *others, **options)
        half = len(whole.getvalue()) // 2
        file.write(whole.getvalue()[:half])
        if events.happens("half"):
            file.flush()
            events.end()
        file.write(whole.getvalue()[half:])

    setattr(torch, "save", save)  # noqa: B010  (its type is another)
    events.around(os, "fsync", "sync", "synced")
    events.around(Path, "replace", "rename", "renamed")
    # Workers are forked, which takes no time; their events count too.
    usual_context = multiprocessing.get_context
    setattr(multiprocessing, "get_context", lambda _: usual_context("fork"))  # noqa: B010  (its type is another)
    register_optimizer_step_post_hook(lambda *_: events.pass_by("step"))
    sys.argv = ["robust", *words]
    main()


class Sessions:
    """Runs `robust` in one folder, session after session.

    Args:
        folder: where the processes work; logs lie in it too.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "session.log"
        self.tally = folder / "session.events"

    def run(self, *words: str, plan: Plan = Plan()) -> int:
        """Exit code of one process; minus the number of the signal that killed it."""
        return self.end_of(self.start(*words, plan=plan))

    def start(self, *words: str, plan: Plan = Plan()) -> BaseProcess:
        """Start a process; what it prints is in the log."""
        self.tally.write_text("0", encoding="utf-8")
        self.log.write_text("", encoding="utf-8")
        return forked.process(_work, words, str(self.folder), plan, str(self.log), str(self.tally))

    def wait_for(self, text: str) -> None:
        """Wait until the process has printed a text."""
        begun = time.monotonic()
        while text not in self.log.read_text(encoding="utf-8"):
            assert time.monotonic() - begun < 120, f"'{text}' is not printed"
            time.sleep(0.01)

    def end_of(self, process: BaseProcess) -> int:
        """Exit code of a process that is about to end; minus the number of the signal that killed it."""
        process.join(120)
        assert process.exitcode is not None, "the process hangs"
        said = self.log.read_text(encoding="utf-8")
        assert "Traceback" not in said, said
        return process.exitcode

    def events(self) -> int:
        """Number of events of the last process."""
        return int(self.tally.read_text(encoding="utf-8"))

    def until_done(self, *words: str, plans: Callable[[int], Plan], limit: int = 100) -> list[int]:
        """Run sessions, each with its plan, until one is done; return their exit codes."""
        codes = []
        for number in range(limit):
            codes.append(self.run(*words, "--resume", plan=plans(number)))
            if codes[-1] == 0:
                return codes
        raise AssertionError(f"still not done after {codes}")
