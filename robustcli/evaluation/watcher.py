"""Protocols for objects that follow the progress of training and evaluation."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from robustcli.evaluation.progress import StageProgress
from robustcli.store.evaluations import Evaluation


class Watcher(Protocol):
    """Follows the progress of training."""

    def settings(self, text: str) -> None:
        """How the passes of training are computed, in one line."""
        ...

    def begin(self, updates: int, done: int) -> None:
        """Training begins: `updates` in total, `done` of them finished."""
        ...

    def step(self, images: int) -> None:
        """One update of `images` images is on its way."""
        ...

    def epoch(self, record: dict[str, Any]) -> None:
        """One epoch is done and checked."""
        ...


class EvaluationWatcher(Watcher, Protocol):
    """Follows the progress of evaluations, too."""

    def evaluation(self, key: str, result: Evaluation | None) -> None:
        """An evaluation begins (result None) or is done."""
        ...

    def attack(self, key: str, progress: StageProgress) -> None:
        """An attack of an evaluation begins, or some of its images are done."""
        ...


Watching = Callable[[], AbstractContextManager[EvaluationWatcher]]
"""Makes and enters a watcher in another process."""
