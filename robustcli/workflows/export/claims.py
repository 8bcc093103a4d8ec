"""What an evaluation lacks to be called what RobustBench calls it."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from robustcli.workflows.export.card import eps_text
from robustcli.workflows.export.metadata import Metadata

# Radii of the leaderboards; 0.031 is how some papers write 8/255, and a footnote says so.
_BOARDS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "cifar10": {"linf": ("8/255", "0.031"), "l2": ("0.5",)},
    "cifar100": {"linf": ("8/255", "0.031")},
    "imagenet": {"linf": ("4/255",)},
}
_SIZES = {"cifar10": 10_000, "cifar100": 10_000, "imagenet": 5_000}
_STANDARD = ["apgd-ce", "apgd-t", "fab-t", "square"]
# Below this the targeted DLR loss is not defined, and another attack takes its place.
_CLASSES = 4


def missing_images(dataset: str, evaluated: int, images: int) -> list[str]:
    """What an evaluation lacks to be about a whole test set.

    Args:
        evaluated: images of it.
        images: in the test set.
    """
    if evaluated < images:
        return [f"images: the first {evaluated:,} of {images:,} test images; all are needed"]
    if images != _SIZES.get(dataset, images):
        return [f"images: {images:,} of {dataset}; the leaderboard's test set has {_SIZES[dataset]:,}"]
    return []


def missing_for_autoattack(
    result: Mapping[str, Any],
    *,
    threat: Mapping[str, str],
    dataset: str,
    images: int,
    classes: int,
    metadata: Metadata,
) -> list[str]:
    """What an evaluation lacks to be called autoattack_acc, in words; nothing if it may.

    Args:
        result: of the evaluation, as stored.
        threat: norm and eps of the card.
        dataset: as the card calls it.
        images: in the test set.
        classes: of the data.
    """
    missing = missing_images(dataset, result["total"], images)
    norm, eps = threat["norm"], threat["eps"]
    if (result["norm"], Fraction(result["eps"])) != (norm, Fraction(eps)):
        missing.append(f"threat: {result['norm']} {result['eps']}; the card is about {norm} {eps}")
    if dataset in _BOARDS:
        radii = _BOARDS[dataset].get(norm, ())
        if Fraction(eps) not in [Fraction(radius) for radius in radii]:
            known = ", ".join(f"{name} {radii[0]}" for name, radii in _BOARDS[dataset].items())
            missing.append(f"threat: {norm} {eps_text(norm, eps)}; the leaderboards of {dataset} have {known}")
        elif eps_text(norm, eps) == "0.031" and not metadata.footnote:
            missing.append("threat: linf 0.031 in place of 8/255; the metadata's footnote is to say so")
    if result["evaluator"] != "autoattack":
        return [*missing, f"evaluator: {result['evaluator']}; autoattack is needed"]
    parameters = result["parameters"]
    if parameters["version"] != "standard":
        missing.append(f"version: {parameters['version']}; standard is needed")
    stages = [stage["name"] for stage in result["stages"]]
    # The package of AutoAttack's authors is one stage, so what it was asked for counts.
    is_package = stages == ["package"] and not parameters.get("attacks")
    if stages != _STANDARD and not is_package:
        ran = ", ".join(parameters.get("attacks") or stages) or "none"
        missing.append(f"attacks: {ran}; {', '.join(_STANDARD)} are needed")
    elif is_package and classes < _CLASSES:
        missing.append(
            f"attacks: not all of {', '.join(_STANDARD)}, which need {_CLASSES} classes; there are {classes}"
        )
    if parameters.get("precision", "fp32") != "fp32":
        missing.append(f"precision: {parameters['precision']}; fp32 is needed")
    if parameters.get("screen") is not None:
        missing.append(f"screen: {parameters['screen']}; every survivor is to be attacked")
    return missing
