"""Explanations of verdicts, suspicions, states of runs and exit codes, with advice."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from robustcli.errors import RobustCliError, suggest
from robustcli.specs.yamlfile import read_yaml


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Explanation of one code.

    Args:
        code: argument of `robust explain`.
        means: meaning of the code.
        then: advice.
        phrases: parts of messages that it explains.
        former: parts of messages in results of earlier versions.
    """

    code: str
    means: str
    then: str
    phrases: Sequence[str] = ()
    former: Sequence[str] = ()


_FILE = Path(__file__).with_name("explanations.yaml")
EXPLANATIONS = tuple(Explanation(code=code, **entry) for code, entry in read_yaml(_FILE).value.items())


def explanations_of(text: str) -> list[Explanation]:
    """Return the explanation of a code, or those of the messages that a text quotes.

    Raises:
        RobustCliError: there is none.
    """
    wanted = text.strip().lower().replace("_", "-").replace(" ", "-").removeprefix("exit-code-")
    found = [one for one in EXPLANATIONS if one.code.lower() == wanted]
    if not found:
        found = [
            one for one in EXPLANATIONS if any(phrase.lower() in text.lower() for phrase in (*one.phrases, *one.former))
        ]
    if not found:
        raise RobustCliError(f"there is no explanation of '{text}'{suggest(text, (one.code for one in EXPLANATIONS))}")
    return found
