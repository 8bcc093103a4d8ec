"""Do the files of an evaluation agree with each other? What can be asked without the network; answers are problems."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from robustcli.evaluation.evaluate import Result
from robustcli.evaluation.per_image import Line
from robustcli.threat.threat import ThreatModel

Threats = Mapping[str, ThreatModel]
"""By stage; what is no stage has that of the evaluation."""
# What sums over the pixels of large images may lose in single precision: a share of the radius, and beside it.
_OVERSHOOT, _BESIDE = 1e-2, 1e-5


def of_counts(result: Result, lines: list[Line]) -> Iterator[str]:
    """Whether result and ledger say the same."""
    survivors = "".join("1" if line.broken_by == "" else "0" for line in lines)
    if [line.image for line in lines] != list(range(len(lines))):
        yield "ledger: the images are not numbered 0, 1, 2, ..."
    if survivors != result.survivors:
        pairs = zip(survivors, result.survivors, strict=False)
        first = next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(lines), result.total))
        yield f"survivors: the ledger and the result differ, first at image {first}"
    broken = Counter(line.broken_by for line in lines)
    left = len(lines) - broken["clean"]
    for stage in result.stages:
        if (stage.entered, stage.broken) != (left, broken[stage.name]):
            yield (
                f"{stage.name}: the result says {stage.broken} broken of {stage.entered}, the ledger "
                f"{broken[stage.name]} of {left}"
            )
        left -= broken[stage.name]
    known = {"", "clean", *(stage.name for stage in result.stages)}
    for name in sorted(set(broken) - known):
        yield f"ledger: {broken[name]} images are broken by '{name}', which is no stage of the result"


def of_derived(result: Result, stored: Mapping[str, Any]) -> Iterator[str]:
    """Whether what is said of the number follows from what is known of it."""
    given = {item.name for item in fields(result)}
    expected = {name: value for name, value in result.to_json().items() if name not in given}
    expected["gradients"] = sum(stage.gradients for stage in result.stages)
    for name, value in expected.items():
        if stored.get(name) != value:
            yield f"{name}: the result says {stored.get(name)}, what it is made of gives {value}"
    clean = result.forwards - sum(stage.forwards for stage in result.stages)
    # Clean images take one forward each, or several equal looks.
    if clean <= 0 or clean % result.total:
        yield f"forwards: the result says {result.forwards}, of which stages and clean images leave {clean}"


def of_lines(lines: list[Line], threats: Threats, *, is_random: bool) -> Iterator[str]:
    """Whether prediction, margin and size of every image are such as its fate allows."""
    for line in lines:
        threat = threats[line.broken_by]
        farthest = threat.radius * (1 + _OVERSHOOT) + _BESIDE
        # Comparisons with NaN are false, so a NaN is odd.
        if line.broken_by in ("", "clean"):
            is_odd = line.prediction != line.clean or line.size != 0
        else:
            is_odd = line.prediction == line.label or not 0 < line.size <= farthest
        if is_odd:
            yield (
                f"ledger: image {line.image} is '{line.broken_by}', with label {line.label}, prediction "
                f"{line.prediction} and size {line.size:g} where {threat.radius:g} is allowed"
            )
            return
        is_fooled = line.broken_by != ""
        # Where logits vary, most of several forwards decide, and their mean margin may lie on the other side.
        if not is_random and not (line.margin >= 0 if is_fooled else line.margin <= 0):
            yield f"ledger: image {line.image} is '{line.broken_by}', with a largest margin of {line.margin:g}"
            return
