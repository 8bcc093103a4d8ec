"""Follow the progress of training and evaluation."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager

from robustcli.evaluation.progress import StageLines, StageProgress
from robustcli.store.evaluations import Evaluation
from robustcli.store.records import Record


class Watcher:
    """Follows the progress of training and of the evaluations after it; this one shows nothing."""

    def settings(self, text: str) -> None:
        """How the passes of training are computed, in one line."""

    def begin(self, updates: int, done: int) -> None:
        """Called when training starts, with the total number of updates and the number already done."""

    def step(self, images: int) -> None:
        """Called before an update on a number of images."""

    def epoch(self, record: Record) -> None:
        """Called after an epoch and its check."""

    def evaluation(self, key: str, result: Evaluation | None) -> None:
        """Called when an evaluation starts (result None) and when it is done."""

    def attack(self, key: str, progress: StageProgress) -> None:
        """Called when an attack of an evaluation starts, and after some of its images."""


def _to_log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Lines(Watcher):
    """Shows the progress of evaluations as lines of a log.

    Args:
        write: prints a line; by default on the error stream.
    """

    def __init__(self, write: Callable[[str], None] = _to_log) -> None:
        self._write = write
        self._lines: dict[str, StageLines] = {}

    def attack(self, key: str, progress: StageProgress) -> None:
        self._lines.setdefault(key, StageLines(self._write, f"evaluating {key}: "))(progress)


Watching = Callable[[], AbstractContextManager[Watcher]]
"""Creates and enters a watcher in another process."""
