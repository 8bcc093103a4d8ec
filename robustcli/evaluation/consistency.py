"""Checks that the files of an evaluation agree with each other, without the network; each yields problems."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from robustcli.evaluation.per_image import ImageResult
from robustcli.evaluation.two_phase import TwoPhases
from robustcli.store.evaluations import Evaluation
from robustcli.threat.threat import ThreatModel

Threats = Mapping[str, ThreatModel]
"""Threat by name of the stage; other names have the threat of the evaluation."""
# Rounding of sums over the pixels of large images in single precision: relative to the radius, and absolute.
_OVERSHOOT, _ABSOLUTE = 1e-2, 1e-5


def check_counts(result: Evaluation, lines: list[ImageResult]) -> Iterator[str]:
    """Check that the result and the per-image results agree."""
    survivors = "".join("1" if line.broken_by == "" else "0" for line in lines)
    if [line.image for line in lines] != list(range(len(lines))):
        yield "per-image results: the images are not numbered 0, 1, 2, ..."
    if survivors != result.survivors:
        pairs = zip(survivors, result.survivors, strict=False)
        first = next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(lines), result.total))
        yield f"survivors: the per-image results and the result differ, first at image {first}"
    broken = Counter(line.broken_by for line in lines)
    left = len(lines) - broken["clean"]
    for stage in result.stages:
        if (stage.entered, stage.broken) != (left, broken[stage.name]):
            yield (
                f"{stage.name}: the result says {stage.broken} broken of {stage.entered}, the per-image results "
                f"{broken[stage.name]} of {left}"
            )
        left -= broken[stage.name]
    known = {"", "clean", *(stage.name for stage in result.stages)}
    for name in sorted(set(broken) - known):
        yield f"per-image results: {broken[name]} images are broken by '{name}', which is not a stage of the result"


def check_derived(result: Evaluation, stored: Mapping[str, Any]) -> Iterator[str]:
    """Check that derived keys of the file follow from the others."""
    yield from result.contradictions(stored)
    yield from _of_certificates(result, stored)
    if result.suspicions is None and not result.stages:
        # Before attacks were recorded one by one, their sum had nothing to agree with.
        return
    gradients = sum(stage.gradients for stage in result.stages)
    if result.gradients != gradients:
        yield f"gradients: the result says {result.gradients}; its stages give {gradients}"
    phases = TwoPhases.of(result)
    estimate = phases.estimate if phases is not None and phases.fit(result.stages) else None
    if (result.sample is not None or result.estimate is not None) and result.estimate != estimate:
        yield f"estimate: the result says {result.estimate}; its sample, survivors and stages give {estimate}"
    clean = result.forwards - sum(stage.forwards for stage in result.stages)
    # Clean images take one forward each, or an equal number of several.
    if clean <= 0 or clean % result.total:
        yield f"forwards: the result says {result.forwards}, which leaves {clean} for the clean images"


def _of_certificates(result: Evaluation, stored: Mapping[str, Any]) -> Iterator[str]:
    """Check that the certified images are those of the result, and that derived keys follow from them."""
    if result.certified is None:
        return
    found, stated = result.certified.to_json(), stored["certified"]
    if len(found["images"]) != result.total:
        yield f"certified: the result says {len(found['images'])} images; {result.total} were evaluated"
    for name in ("accuracy", "interval"):
        if stated.get(name) != found[name]:
            yield f"certified.{name}: the result says {stated.get(name)}; its images give {found[name]}"


def check_lines(lines: list[ImageResult], threats: Threats, *, is_random: bool) -> Iterator[str]:
    """Check that prediction, margin and size of every image fit its outcome."""
    for line in lines:
        threat = threats[line.broken_by]
        farthest = threat.radius * (1 + _OVERSHOOT) + _ABSOLUTE
        # Comparisons with NaN are false, so a NaN is reported.
        if line.broken_by in ("", "clean"):
            is_odd = line.prediction != line.clean or line.size != 0
        else:
            # If logits vary, the clean image itself may lose a later vote.
            is_moved = is_random or line.size > 0
            is_odd = line.prediction == line.label or not (is_moved and 0 <= line.size <= farthest)
        if is_odd:
            yield (
                f"per-image results: image {line.image} is '{line.broken_by}', with label {line.label}, prediction "
                f"{line.prediction} and size {line.size:g} where {threat.radius:g} is allowed"
            )
            return
        is_fooled = line.broken_by != ""
        # If logits vary, the majority of several forwards decides, and the mean margin may have the other sign.
        if not is_random and not (line.margin >= 0 if is_fooled else line.margin <= 0):
            yield f"per-image results: image {line.image} is '{line.broken_by}', with largest margin {line.margin:g}"
            return
