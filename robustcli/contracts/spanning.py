"""Check of members that follow the progress of training: they declare if they read the length of the run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from robustcli.contracts import averaging, defenses, regularizers, schedules, weights
from robustcli.optimization.progress import Progress

DRIVES: dict[str, Callable[[Any], object]] = {
    "averaging": averaging.continues_from_its_state,
    "defenses": defenses.observed,
    "regularizers": regularizers.continues_from_its_state,
    "schedules": schedules.observed_schedule,
    "weights": weights.repeats_itself,
}


@contextmanager
def _watched() -> Iterator[list[str]]:
    """Record reads of the number of epochs of the run in a list."""
    usual, found = Progress.__getattribute__, list[str]()

    def read(progress: Progress, name: str) -> Any:
        if name == "epochs":
            found.append(name)
        return usual(progress, name)

    Progress.__getattribute__ = read  # type: ignore[method-assign, assignment]
    try:
        yield found
    finally:
        Progress.__getattribute__ = usual  # type: ignore[method-assign]


def asks_for_the_length(family: str, built: Any) -> bool:
    """Return True if a member reads the number of epochs of the whole run."""
    with _watched() as found:
        DRIVES[family](built)
    return bool(found)


def declares_that_it_spans_training(family: str, built: Any, spans: bool) -> None:
    """A member that reads the number of epochs of the run, or the completed share, declares `spans_training`.

    Args:
        spans: its declaration.
    """
    assert spans or not asks_for_the_length(family, built), (
        "it reads progress.epochs or progress.share; add spans_training=True to the registration, so that its runs "
        "are not continued with more epochs"
    )
