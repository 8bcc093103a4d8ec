"""Results of an evaluation as text."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any


def percent(fraction: float) -> str:
    """A fraction as people read it."""
    return f"{100 * fraction:.1f}"


def interval(result: Mapping[str, Any]) -> str:
    """Accuracy with its 95 % interval, in percent."""
    low, high = result["interval"]
    return f"{percent(result['accuracy'])} [{percent(low)}, {percent(high)}]"


def threats_of(result: Mapping[str, Any]) -> str:
    """The threat of an evaluation, and those that attacks of it have for themselves."""
    others = [stage["threat"] for stage in result.get("stages", ()) if stage.get("threat")]
    return ", ".join(dict.fromkeys([f"{result['norm']} {result['eps']}", *others]))


def verdict(result: Mapping[str, Any]) -> str:
    """The verdict in words, as far as the result has one; attacks of one kind alone give an upper bound."""
    word = str(result.get("verdict", ""))
    return f"{word}, upper bound" if result.get("is_upper_bound") else word


def describe(result: Mapping[str, Any]) -> str:
    """Evaluator and the settings that readers ask for."""
    parameters = result["parameters"]
    attack = parameters.get("attack")
    if not isinstance(attack, Mapping):
        parts = [str(result["evaluator"]), *filter(None, [parameters.get("version")])]
        if attacks := parameters.get("attacks"):
            parts.append(f"({', '.join(attacks)})")
        if parameters.get("precision", "fp32") != "fp32":
            parts.append(str(parameters["precision"]))
        if parameters.get("screen"):
            parts.append(f"screen {parameters['screen']}")
        # What older results have no word for was made by the package.
        if "version" in parameters and parameters.get("engine", "reference") == "reference":
            parts.append("(package)")
        return " ".join(parts)
    parts = [attack["name"], *(str(attack[key]) for key in ("steps", "restarts") if key in attack)]
    loss = attack.get("loss")
    source = parameters.get("source")
    return (
        "-".join(parts) + (f" {loss}" if loss not in (None, "ce") else "") + (" from another network" if source else "")
    )


def warning_lines(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What a reader of the numbers must know: suspicions first."""
    return [
        f"{key}: {text}"
        for key, result in results.items()
        for text in (*(f"SUSPECT: {reason}" for reason in result.get("suspicions", ())), *result["warnings"])
    ]


def accuracies(evaluations: Sequence[Mapping[str, Any]]) -> str:
    """One accuracy with its interval, or mean, standard deviation and range of several."""
    if len(evaluations) == 1:
        return interval(evaluations[0])
    found = [100 * evaluation["accuracy"] for evaluation in evaluations]
    return f"{mean(found):.1f} ± {stdev(found):.1f} ({min(found):.1f} to {max(found):.1f})"
