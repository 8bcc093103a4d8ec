"""Promise of every member that follows the progress of training: it declares if it asks how long training is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from robustcli.optimization.progress import Progress
from robustcli.promises import averaging, defenses, regularisers, schedules, weights

DRIVES: dict[str, Callable[[Any], object]] = {
    "averaging": averaging.continues_from_its_state,
    "defenses": defenses.observed,
    "regularisers": regularisers.continues_from_its_state,
    "schedules": schedules.observed_schedule,
    "weights": weights.repeats_itself,
}


@contextmanager
def _watched() -> Iterator[list[str]]:
    """A list that gets an entry whenever the number of epochs of the run is read."""
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
    """A member that reads the number of epochs of the run, or the share that is done, declares `spans_training`.

    Args:
        spans: what it declares.
    """
    assert spans or not asks_for_the_length(family, built), (
        "it reads progress.epochs or progress.share; write spans_training=True into the registration, so that no run "
        "with it is continued with more epochs"
    )
