"""Results of an evaluation as text."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Protocol

from robustcli.store.evaluations import Evaluation, broken_certificates
from robustcli.store.sweep_rows import SweepEvaluation


class Measured(Protocol):
    """An accuracy with its 95 % interval, as fractions."""

    @property
    def accuracy(self) -> float: ...

    @property
    def interval(self) -> tuple[float, float]: ...


def percent(fraction: float) -> str:
    """A fraction in percent, with one decimal."""
    return f"{100 * fraction:.1f}"


def interval(measured: Measured) -> str:
    """Accuracy with its 95 % interval, in percent."""
    low, high = measured.interval
    return f"{percent(measured.accuracy)} [{percent(low)}, {percent(high)}]"


def duration(seconds: float) -> str:
    """Seconds as text such as "42 s", "3 min" or "1.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def first_numbers(numbers: Sequence[int], most: int) -> str:
    """Some of the numbers of images, such as "3, 17 and 5 more"."""
    more = len(numbers) - most
    return f"{', '.join(map(str, numbers[:most]))}{f' and {more} more' if more > 0 else ''}"


def threats_of(evaluation: Evaluation) -> str:
    """Threat models of the evaluation and of its stages; random changes such as corruptions by name."""
    if evaluation.stages and not any(stage.is_search for stage in evaluation.stages):
        return evaluation.evaluator
    own = [stage.threat if stage.is_search else stage.name for stage in evaluation.stages if stage.threat]
    return ", ".join(dict.fromkeys([str(evaluation.threat), *own]))


def verdict(evaluation: Evaluation) -> str:
    """Return the verdict, if the result has one; attacks of only one kind give an upper bound."""
    word = evaluation.verdict or ""
    return f"{word}, upper bound" if evaluation.is_upper_bound else word


def describe(evaluation: Evaluation | SweepEvaluation) -> str:
    """Evaluator and its main settings, such as "pgd-20-1" or "autoattack standard"."""
    parameters = evaluation.parameters
    attack = parameters.get("attack")
    if not isinstance(attack, Mapping):
        parts = [evaluation.evaluator, *filter(None, [parameters.get("version")])]
        if attacks := parameters.get("attacks"):
            parts.append(f"({', '.join(attacks)})")
        if parameters.get("precision", "fp32") != "fp32":
            parts.append(str(parameters.get("precision")))
        if parameters.get("sample_first"):
            parts.append(f"sample first {parameters.get('sample_first')}")
        if parameters.get("engine") == "reference":
            parts.append("(package)")
        return " ".join(parts)
    parts = [str(attack.get(key)) for key in ("name", "steps", "restarts") if key in attack]
    loss = attack.get("loss")
    return (
        "-".join(parts)
        + (f" {loss}" if loss not in (None, "ce") else "")
        + (" from another network" if parameters.get("source") else "")
    )


def warning_lines(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """Warnings about the numbers, suspicions first."""
    return [
        *broken_certificates(evaluations),
        *(
            f"{key}: {text}"
            for key, evaluation in evaluations.items()
            for text in (*(f"SUSPECT: {reason}" for reason in evaluation.suspicions or ()), *evaluation.warnings)
        ),
    ]


def accuracies(evaluations: Sequence[Measured]) -> str:
    """One accuracy with its interval, or mean, standard deviation and range of several."""
    if len(evaluations) == 1:
        return interval(evaluations[0])
    found = [100 * evaluation.accuracy for evaluation in evaluations]
    return f"{mean(found):.1f} ± {stdev(found):.1f} ({min(found):.1f} to {max(found):.1f})"
