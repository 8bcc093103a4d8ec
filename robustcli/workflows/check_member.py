"""`robust check-member`: run the checks of the contract on a member."""

import importlib
import linecache
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from robustcli.contracts.cases import Case, cases_of
from robustcli.errors import RobustCliError
from robustcli.registry.catalog import Member

Verdict = Literal["passed", "failed", "advice"]


@dataclass(frozen=True)
class Outcome:
    """The outcome of one check.

    Args:
        verdict: "passed", "failed", or "advice" if something recommended is missing.
        reason: reason for which it did not pass.
    """

    check: str
    verdict: Verdict
    reason: str


def check_member(member: Member) -> Iterator[Outcome]:
    """Run the checks of a member one by one; a failed one does not stop the others.

    Raises:
        RobustCliError: Python runs without assertions, or the member cannot be imported or built.
    """
    if not __debug__:
        raise RobustCliError("check-member: checks are assertions, which python -O disables; run it without -O")
    where = f"{member.path}:{member.line}"
    try:
        importlib.import_module(member.module)
        cases = list(cases_of(member))
    except Exception as error:
        raise RobustCliError(f"{where}: '{member.name}' cannot be built from its smoke settings: {error}") from error
    for case in cases:
        yield _outcome(case)


def _outcome(case: Case) -> Outcome:
    reason = ""
    try:
        with warnings.catch_warnings():
            # Warnings are for readers of a number.
            warnings.simplefilter("ignore")
            case.run()
    except AssertionError as error:
        reason = str(error) or f"not true: {_line_of(error)}"
    except Exception as error:
        reason = f"{type(error).__name__}: {error}; raised by: {_line_of(error)}"
    verdict: Verdict = "passed" if not reason else "advice" if case.is_advice else "failed"
    return Outcome(case.name, verdict, reason)


def _line_of(error: Exception) -> str:
    """The line of code that raised an error."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    line = linecache.getline(last.filename, last.lineno or 0).strip()
    return f"{line} ({last.filename}:{last.lineno})"
