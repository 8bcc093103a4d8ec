"""RobustBench's model card, with the keys, their order, the spelling and the units of that project."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from string import Formatter
from typing import Any

from robustcli.errors import RobustCliError
from robustcli.evaluation.per_image import ImageResult
from robustcli.registry.catalog import describe
from robustcli.registry.types import exact_text
from robustcli.store.evaluations import Evaluation, Threat
from robustcli.workflows.export.metadata import Metadata

_THREATS = {"linf": "Linf", "l2": "L2"}
# Settings that names of architectures in papers and tables leave out.
_UNNAMED = ("activation", "form")


def threat_name(norm: str) -> str:
    """Norm as RobustBench spells it.

    Raises:
        RobustCliError: RobustBench has no threat of that norm.
    """
    if norm not in _THREATS:
        raise RobustCliError(f"norm {norm}: RobustBench has no such threat; expected {' or '.join(_THREATS)}")
    return _THREATS[norm]


def eps_text(norm: str, eps: str) -> str:
    """Radius as cards write it: in 255ths if it is not a short decimal, so 2/85 becomes 6/255."""
    text = exact_text(Fraction(eps))
    steps = 255 * Fraction(eps)
    return f"{steps.numerator}/255" if norm == "linf" and "/" in text and steps.denominator == 1 else text


def card(
    metadata: Metadata,
    result: Evaluation,
    lines: Sequence[ImageResult],
    *,
    threat: Threat,
    dataset: str,
    architecture: str,
    left_out: Sequence[str],
) -> dict[str, Any]:
    """The card, with its keys in RobustBench's order.

    Args:
        result, lines: stored evaluation and its per-image results.
        threat: norm and eps.
        dataset, architecture: names in the card.
        left_out: keys that are omitted from the card.

    Raises:
        RobustCliError: the metadata's `external` is not below the robust accuracy.
    """
    clean = percent(sum(line.clean == line.label for line in lines), len(lines))
    robust = percent(result.correct, result.total)
    has_robust = "autoattack_acc" not in left_out
    if has_robust and metadata.external is not None and Fraction(metadata.external) >= Fraction(robust):
        raise RobustCliError(
            f"metadata: external: {metadata.external} is not below autoattack_acc, which is {robust}; leave it out"
        )
    keys: dict[str, Any] = {
        "link": metadata.link,
        "name": metadata.name,
        "authors": metadata.authors,
        "additional_data": metadata.additional_data,
        "number_forward_passes": 1,
        "dataset": dataset,
        "venue": metadata.venue,
        "architecture": architecture,
        "eps": eps_text(threat.norm, threat.eps),
        "clean_acc": clean,
        "reported": metadata.reported,
        "autoattack_acc": robust,
        "external": metadata.external,
        "footnote": metadata.footnote,
        "unreliable": bool(result.suspicions),
    }
    absent = {*left_out, *(("external",) if metadata.external is None else ())}
    return {key: value for key, value in keys.items() if key not in absent}


def percent(correct: int, total: int) -> str:
    """Fraction in percent with two decimals, rounded from the exact quotient."""
    return f"{float(round(Fraction(100 * correct, total), 2)):.2f}"


def architecture_name(name: str, parameters: Mapping[str, Any]) -> str:
    """Name of an architecture in cards, such as WideResNet-34-10; else the registered name.

    Args:
        name: registered name.
        parameters: all its settings.
    """
    member = describe("architectures", name)
    if not member.title:
        return name
    title = member.title.format(**member.fixed, **parameters)
    in_title = {field for _, field, _, _ in Formatter().parse(member.title)}
    others = {
        key: value
        for key, value in parameters.items()
        if key in member.parameters.keys() - in_title - set(_UNNAMED)
        and _plainly(value) != _plainly(member.parameters[key].default)
    }
    settings = ", ".join(f"{key} {_plainly(value)}" for key, value in others.items())
    words = member.titles.get(title, title)
    return f"{words} ({settings})" if settings else words


def _plainly(value: Any) -> str:
    return "".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
