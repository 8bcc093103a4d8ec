"""RobustBench's model card, its keys in that project's order, words and units."""

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from robustcli.errors import RobustCliError
from robustcli.evaluation.per_image import Line
from robustcli.registry.catalog import describe
from robustcli.registry.types import exact_text
from robustcli.workflows.export.metadata import Metadata

_THREATS = {"linf": "Linf", "l2": "L2"}


def threat_name(norm: str) -> str:
    """A norm as RobustBench spells it.

    Raises:
        RobustCliError: it has none of that norm.
    """
    if norm not in _THREATS:
        raise RobustCliError(f"norm {norm}: RobustBench has no such threat; it has {' and '.join(_THREATS)}")
    return _THREATS[norm]


def eps_text(norm: str, eps: str) -> str:
    """A radius as cards have it: in 255ths where it is no short decimal, so 2/85 becomes 6/255."""
    text = exact_text(Fraction(eps))
    steps = 255 * Fraction(eps)
    return f"{steps.numerator}/255" if norm == "linf" and "/" in text and steps.denominator == 1 else text


def card(
    metadata: Metadata,
    result: Mapping[str, Any],
    lines: Sequence[Line],
    *,
    threat: Mapping[str, str],
    dataset: str,
    architecture: str,
    left_out: Sequence[str],
) -> dict[str, Any]:
    """The card, its keys in RobustBench's order.

    Args:
        result, lines: of one evaluation, as stored.
        threat: norm and eps.
        dataset, architecture: as the card calls them.
        left_out: keys that it may not have.

    Raises:
        RobustCliError: the metadata's `external` is no lower accuracy.
    """
    clean = percent(sum(line.clean == line.label for line in lines), len(lines))
    robust = percent(result["correct"], result["total"])
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
        "eps": eps_text(threat["norm"], threat["eps"]),
        "clean_acc": clean,
        "reported": metadata.reported,
        "autoattack_acc": robust,
        "external": metadata.external,
        "footnote": metadata.footnote,
        "unreliable": bool(result["suspicions"]),
    }
    absent = {*left_out, *(("external",) if metadata.external is None else ())}
    return {key: value for key, value in keys.items() if key not in absent}


def percent(correct: int, total: int) -> str:
    """A share in percent with two decimals, rounded from the exact quotient."""
    return f"{float(round(Fraction(100 * correct, total), 2)):.2f}"


def architecture_name(name: str, parameters: Mapping[str, Any]) -> str:
    """The name that cards give an architecture, such as WideResNet-34-10; our own where it has none there.

    Args:
        name: as registered.
        parameters: its settings, all of them.
    """
    if name == "torchvision":
        return _torchvision_name(parameters["model"])
    found = re.fullmatch(r"(preact_)?resnet(\d+)|(vgg)(\d+)", name)
    if name == "wide_resnet":
        words = f"WideResNet-{parameters['depth']}-{parameters['widen']}"
    elif found is None:
        return name
    else:
        words = f"VGG-{found[4]}" if found[3] else f"{'PreActResNet' if found[1] else 'ResNet'}-{found[2]}"
    # The numbers in the name say nothing of these, and a network of other layers is another network.
    known = describe("architectures", name).parameters
    others = {
        key: parameters[key]
        for key in _DECIDING
        if key in parameters and _plainly(parameters[key]) != _plainly(known[key].default)
    }
    settings = ", ".join(f"{key} {_plainly(value)}" for key, value in others.items())
    return f"{words} ({settings})" if settings else words


# Settings of a network that its number of weights or its cost depends on, and layers of another kind.
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
