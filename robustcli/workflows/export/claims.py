"""Conditions for the keys `autoattack_acc` and `clean_acc` of RobustBench."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from robustcli.evaluators.autoattack import PUBLISHED
from robustcli.registry.catalog import catalog
from robustcli.store.evaluations import Evaluation, Threat
from robustcli.workflows.export.card import eps_text
from robustcli.workflows.export.metadata import Metadata

# Radii of the leaderboards. Some papers write 0.031 for 8/255; the card's footnote must say so.
_BOARDS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "cifar10": {"linf": ("8/255", "0.031"), "l2": ("0.5",)},
    "cifar100": {"linf": ("8/255", "0.031")},
    "imagenet": {"linf": ("4/255",)},
}
_SIZES = {"cifar10": 10_000, "cifar100": 10_000, "imagenet": 5_000}
_STANDARD = list(PUBLISHED["standard"])
# With fewer classes the targeted DLR loss is undefined and another attack is used.
_CLASSES = 4


def missing_images(dataset: str, evaluated: int, images: int) -> list[str]:
    """Reasons why an evaluation does not cover the whole test set.

    Args:
        evaluated: number of images evaluated.
        images: number of images in the test set.
    """
    if evaluated < images:
        return [f"images: the first {evaluated:,} of {images:,} test images; expected all"]
    if images != _SIZES.get(dataset, images):
        return [f"images: {images:,} of {dataset}; the leaderboard's test set has {_SIZES[dataset]:,}"]
    return []


def missing_for_autoattack(
    result: Evaluation,
    *,
    threat: Threat,
    dataset: str,
    images: int,
    classes: int,
    metadata: Metadata,
) -> list[str]:
    """Reasons why an evaluation does not qualify as autoattack_acc; none if it does.

    Args:
        result: the stored evaluation.
        threat: norm and eps of the card.
        dataset: name in the card.
        images: number of images in the test set.
        classes: number of classes.
    """
    missing = missing_images(dataset, result.total, images)
    norm, eps = threat.norm, threat.eps
    if (result.norm, Fraction(result.eps)) != (norm, Fraction(eps)):
        missing.append(f"threat: {result.threat}; the card is about {norm} {eps}")
    if dataset in _BOARDS:
        radii = _BOARDS[dataset].get(norm, ())
        if Fraction(eps) not in [Fraction(radius) for radius in radii]:
            known = ", ".join(f"{name} {radii[0]}" for name, radii in _BOARDS[dataset].items())
            missing.append(f"threat: {norm} {eps_text(norm, eps)}; the leaderboards of {dataset} have {known}")
        elif eps_text(norm, eps) == "0.031" and not metadata.footnote:
            missing.append("threat: linf 0.031 in place of 8/255; the metadata's footnote must say so")
    needed = leaderboard_settings().get(result.evaluator)
    if needed is None:
        return [*missing, f"evaluator: {result.evaluator}; expected {' or '.join(leaderboard_settings())}"]
    parameters = result.parameters
    missing += [
        f"{key}: {parameters[key]}; expected {'null' if value is None else value}"
        for key, value in needed.items()
        # Settings that a result of an earlier version lacks had these values.
        if key in parameters and parameters[key] != value
    ]
    stages = [stage.name for stage in result.stages]
    # The package of AutoAttack's authors is a single stage, so its settings decide.
    is_package = stages == ["package"] and not parameters.get("attacks")
    if stages != _STANDARD and not is_package:
        ran = ", ".join(parameters.get("attacks") or stages) or "none"
        missing.append(f"attacks: {ran}; expected {', '.join(_STANDARD)}")
    elif is_package and classes < _CLASSES:
        missing.append(
            f"attacks: not all of {', '.join(_STANDARD)}, which need {_CLASSES} classes; there are {classes}"
        )
    return missing


def leaderboard_settings() -> dict[str, dict[str, Any]]:
    """Return the evaluators whose number may be autoattack_acc, with the settings that this needs."""
    return {name: member.leaderboard for name, member in catalog("evaluators").items() if member.leaderboard}
