"""Errors that a user can cause and fix: one message, exit code 2, no traceback."""

from collections.abc import Iterable
from difflib import get_close_matches


class RobustCliError(Exception):
    """Something a user can fix; the message alone is shown."""


class CheckFailedError(RobustCliError):
    """A check that the user asked for failed (exit code 1)."""


class SpecError(RobustCliError):
    """A spec with problems, all of them at once.

    Args:
        source: the file, or what else the values came from.
        problems: one line each: where, what was found, what was expected.
    """

    def __init__(self, source: str, problems: list[str]) -> None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{source}: {count}", *(f"  {line}" for line in problems)]))
        self.problems = problems


class EvaluationError(RobustCliError):
    """A model, data or attack that would give a number which means nothing."""


class NotFiniteError(RobustCliError):
    """The training loss stopped being a number."""


class CollapseError(RobustCliError):
    """Robustness to many steps was lost suddenly (catastrophic overfitting)."""


class InUseError(RobustCliError):
    """Another process works in this folder; it is free again when that one is done or gone."""


class Interrupted(Exception):
    """A signal asked the run to stop; its state is saved and it can be resumed (exit code 3)."""


def suggest(found: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known name, and all of them."""
    names = sorted(known)
    near = get_close_matches(found, names, n=1, cutoff=0.6)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return f"{hint} (known: {', '.join(names) or 'none'})"


def in_one_line(error: Exception) -> str:
    """The kind of an error and the first line of what it says; compilers go on for pages."""
    said = str(error).splitlines()
    return f"{type(error).__name__}: {said[0] if said else ''}"
