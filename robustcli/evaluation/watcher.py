"""Protocols for objects that follow the progress of training and evaluation."""

from typing import Any, Protocol

from robustcli.store.results import Evaluation


class Watcher(Protocol):
    """Who is shown the progress of training."""

    def begin(self, updates: int, done: int) -> None:
        """Training begins, with so many updates in all and so many done."""
        ...

    def step(self, images: int) -> None:
        """One update is on its way."""
        ...

    def epoch(self, record: dict[str, Any]) -> None:
        """One epoch is done and checked."""
        ...


class EvaluationWatcher(Watcher, Protocol):
    """Who is also shown the evaluations."""

    def evaluation(self, key: str, result: Evaluation | None) -> None:
        """An evaluation begins (result None) or is done."""
        ...
