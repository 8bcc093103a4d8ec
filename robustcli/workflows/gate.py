"""`robust gate`: conditions on results, each with an exact test -> passed or failed."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from robustcli.errors import RobustCliError, suggest
from robustcli.store.results import Results
from robustcli.workflows.compare import LEVEL, compare, read_side

_CONDITION = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9_.-]*)\s*>=\s*([0-9./]+)\s*")


@dataclass(frozen=True)
class Outcome:
    """One condition and its result.

    Args:
        condition: the condition as text.
        evaluation: name of the evaluation.
        passed: whether the condition holds.
        text: measured values.
        suspicions: why the accuracy may mean nothing; empty if its verdict is not SUSPECT.
    """

    condition: str
    evaluation: str
    passed: bool
    text: str
    suspicions: list[str]


def gate(
    result: Path,
    minima: Sequence[str] = (),
    *,
    baseline: Path | None = None,
    max_drop: float | None = None,
    keys: Sequence[str] = (),
) -> list[Outcome]:
    """Check conditions on results.

    A minimum holds if the measured accuracy reaches it. If some attacks ran only on a sample, it is an upper bound, and
    the estimate has to reach the minimum too. A drop against the baseline fails if it is larger than `max_drop` and
    significant: the exact McNemar test on the same images has p < 0.05. With few images, a large drop may not be
    significant; the text of the outcome has the interval.

    Args:
        result: results.json, or a folder that has one.
        minima: conditions such as "robust>=0.41", "clean>=0.8" or "autoattack>=0.4"; `robust` is the lowest robust
            accuracy of all evaluations.
        baseline: earlier results on the same images.
        max_drop: largest accepted drop of accuracy, as a fraction.
        keys: evaluations to compare with the baseline; if empty, all that both have.

    Raises:
        RobustCliError: a condition cannot be read, or names a missing evaluation; there is no condition; or
            the results cannot be compared.
    """
    if (baseline is None) != (max_drop is None):
        raise RobustCliError("--max-drop and --baseline need each other, such as --max-drop 0.01 --baseline OLD.json")
    if max_drop is not None and not 0 <= max_drop < 1:
        raise RobustCliError(f"--max-drop: found {max_drop:g}; expected a fraction from 0 to 1, such as 0.01")
    if not minima and baseline is None:
        raise RobustCliError('found no condition; expected --min "robust>=0.41", or --max-drop with --baseline')
    if keys and baseline is None:
        raise RobustCliError('--key: only with --baseline; write --min "NAME>=FRACTION" for one evaluation')
    results = read_side(result)
    outcomes = [_minimum(results, text) for text in minima]
    if baseline is not None and max_drop is not None:
        outcomes += _drops(result, baseline, max_drop, keys)
    return outcomes


def _minimum(results: Results, text: str) -> Outcome:
    found = _CONDITION.fullmatch(text)
    if found is None:
        # Without quotes, a shell takes >= for a file to write to.
        raise RobustCliError(f"--min: found '{text}'; expected NAME>=FRACTION in quotes, such as \"robust>=0.41\"")
    name, least = found[1], _fraction(found[2], text)
    key = results.key_of(name)
    if key is None:
        known = (*results.evaluations, "clean", "robust")
        raise RobustCliError(f"--min: there is no evaluation '{name}'{suggest(name, known)}")
    evaluation = results.evaluations[key]
    low, high = evaluation.interval
    measured = f"{evaluation.accuracy:.4f} [{low:.4f}, {high:.4f}], {evaluation.correct} of {evaluation.total} images"
    passed = Fraction(evaluation.correct, evaluation.total) >= least
    if (guess := evaluation.estimate) is not None:
        measured += f"; estimated from a sample {guess.accuracy:.4f} [{guess.low:.4f}, {guess.high:.4f}]"
        # As floats: both are the nearest ones to their quotients, so equal fractions are equal here.
        passed = passed and guess.accuracy >= float(least)
    return Outcome(
        condition=f"{name} >= {float(least):g}",
        evaluation=key,
        passed=passed,
        text=measured,
        suspicions=evaluation.suspicions or [],
    )


def _fraction(text: str, condition: str) -> Fraction:
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError):
        value = Fraction(-1)
    if not 0 <= value <= 1:
        raise RobustCliError(f"--min: found '{condition}'; expected a fraction from 0 to 1, such as robust>=0.41")
    return value


def _drops(result: Path, baseline: Path, max_drop: float, keys: Sequence[str]) -> list[Outcome]:
    outcomes = []
    for key, pair in compare(result, baseline, keys).items():
        low, high = pair.difference_interval
        change = f"change {pair.difference:+.4f} [{low:+.4f}, {high:+.4f}]"
        outcomes.append(
            Outcome(
                condition=f"drop <= {max_drop:g}",
                evaluation=key,
                passed=-pair.difference <= max_drop or pair.p >= LEVEL,
                text=f"{change} on {pair.total} images, p = {pair.p:.2g}",
                suspicions=pair.evaluations[0].suspicions or [],
            )
        )
    return outcomes
