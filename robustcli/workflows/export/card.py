"""RobustBench's model card, with the keys, their order, the spelling and the units of that project."""

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from robustcli.errors import RobustCliError
from robustcli.evaluation.per_image import ImageResult
from robustcli.registry.catalog import describe
from robustcli.registry.types import exact_text
from robustcli.store.evaluations import Evaluation, Threat
from robustcli.workflows.export.metadata import Metadata

_THREATS = {"linf": "Linf", "l2": "L2"}


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
    if name == "torchvision":
        return _torchvision_name(str(parameters.get("model")))
    member = describe("architectures", name)
    if not member.title:
        return name
    words = member.title.format(**member.fixed, **parameters)
    # The numbers in the title do not cover these settings, which change the network.
    others = {
        key: parameters[key]
        for key in _DECIDING
        if key in parameters and _plainly(parameters[key]) != _plainly(member.parameters[key].default)
    }
    settings = ", ".join(f"{key} {_plainly(value)}" for key, value in others.items())
    return f"{words} ({settings})" if settings else words


# Settings that change the number of weights, the cost or the kind of layers.
_DECIDING = ("width", "norm", "downsample", "channel_gate", "stem_stride", "strides", "upsample")


def _plainly(value: Any) -> str:
    return "".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)


def _torchvision_name(model: str) -> str:
    if found := re.fullmatch(r"resnet(\d+)", model):
        return f"ResNet-{found[1]}"
    if found := re.fullmatch(r"wide_resnet(\d+)_(\d+)", model):
        return f"WideResNet-{found[1]}-{found[2]}"
    if found := re.fullmatch(r"(convnext|swin)_(tiny|small|base|large|t|s|b)", model):
        return f"{'ConvNeXt' if found[1] == 'convnext' else 'Swin'}-{found[2][0].upper()}"
    return model
