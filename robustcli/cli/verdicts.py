"""Exit code 1 for verdicts that the user does not accept: `--fail-on`."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from robustcli.errors import CheckFailedError

if TYPE_CHECKING:
    from robustcli.store.evaluations import Evaluation


def require(fail_on: Literal["suspect"] | None, evaluations: "Iterable[tuple[str, Evaluation]]") -> None:
    """Raise if an evaluation has the verdict that `--fail-on` names, after everything is printed and stored.

    Raises:
        CheckFailedError: names the evaluations.
    """
    if fail_on is None:
        return
    found = list(evaluations)
    wrong = list(dict.fromkeys(key for key, evaluation in found if evaluation.verdict == fail_on.upper()))
    if wrong:
        raise CheckFailedError(f"{', '.join(wrong)}: the verdict is {fail_on.upper()} (--fail-on {fail_on})")
