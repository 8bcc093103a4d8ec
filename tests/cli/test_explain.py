"""`robust explain` knows codes and pasted messages, and its phrases occur in the messages."""

import ast
import re
from pathlib import Path

import pytest
from shell import Robust

import robustcli
from robustcli.cli.main import EXIT_CODES
from robustcli.evaluators.from_file import OUTSIDE
from robustcli.reports.explanations import EXPLANATIONS, explanations_of


@pytest.mark.parametrize("word", ["SUSPECT", "suspect", "gradient-masking", "gradient masking", "test_selection", "70"])
def test_a_code_is_explained_however_it_is_written(robust: Robust, word: str) -> None:
    robust("explain", word).require(0, "What to do: ")


def test_a_message_is_explained(robust: Robust) -> None:
    message = "square, which uses no gradients, broke 3 of 50 images: gradients may be masked, and the true robust"
    robust("explain", message).require(0, "gradient-masking: ")
    robust("explain", *message.split()).require(0, "gradient-masking: ")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("outside-points", f"{OUTSIDE}: images 3, 4"),
        (
            "contradiction",
            "3 images are certified, and an attack broke them: certificate or attack is wrong, and neither",
        ),
        ("upper-bound", "TRUSTED, upper bound"),
    ],
)
def test_rare_suspicions_are_explained(code: str, message: str) -> None:
    assert [one.code for one in explanations_of(message)] == [code]


def test_a_message_of_an_earlier_version_is_explained(robust: Robust) -> None:
    robust("explain", "gradients lead nowhere, so the attacks").require(0, "gradient-masking: ")


def test_without_a_code_all_are_listed(robust: Robust) -> None:
    said = robust("explain").require(0)
    assert [line.split()[0] for line in said.out.splitlines()] == [one.code for one in EXPLANATIONS]
    assert all(len(line) <= 120 for line in said.out.splitlines())


def test_an_unknown_code_gets_the_nearest(robust: Robust) -> None:
    robust("explain", "SUSPCT").require(2, "there is no explanation of 'SUSPCT'", "SUSPECT")


def test_every_exit_code_is_explained() -> None:
    codes = [word for word in EXIT_CODES.replace(",", " ").split() if word.isdigit()]
    assert codes == ["0", "1", "2", "3", "4", "70", "130"]
    # 141 comes from the reader of the output, so that the help need not list it.
    listed = re.findall(r"^\| (\d+) \|", (Path(__file__).parents[2] / "AGENTS.md").read_text(), re.MULTILINE)
    assert listed == [*codes, "141"]
    assert all(explanations_of(code)[0].means.startswith("Exit code: ") for code in listed)


def texts(path: Path) -> list[str]:
    """String literals of a source file; of f-strings the constant parts."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(part.value for part in node.values if isinstance(part, ast.Constant)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


def test_every_phrase_is_part_of_a_message() -> None:
    package = Path(robustcli.__file__).parent
    known = [text.lower() for path in package.rglob("*.py") if path.name != "explanations.py" for text in texts(path)]
    missing = [
        phrase for one in EXPLANATIONS for phrase in one.phrases if not any(phrase.lower() in text for text in known)
    ]
    assert missing == []
