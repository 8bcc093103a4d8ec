"""The `finding:` of a sweep: what a paper claims, as comparisons of measured numbers. Imports no torch."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from robustcli.errors import suggest
from robustcli.registry.types import Count, Family
from robustcli.specs.places import Where

# Prefixes of metrics other than accuracies, and what may follow.
PREFIXES = ("epochs", "cost", "measure")
COSTS = ("forwards", "gradients", "total")


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A diagnostic that is run on the trained network of every arm and seed.

    Args:
        diagnostic: member of the registry of diagnostics, with its settings.
        images: part of the data set on which it runs.
        examples: number of images, from the first on in the fixed order.
    """

    diagnostic: Annotated[Any, Family("diagnostics")]
    images: Literal["test", "train"] = "test"
    examples: Count = 200


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """One comparison that the paper's claim predicts.

    Exactly one of `above`, `below` and `near` is given. Accuracies are in percent.

    Args:
        metric: number to compare: the name of an evaluation, epochs.NAME.mean (of all lines of train.jsonl; also max,
            min, first or last; NAME may be seconds or robust), cost.total (of an update, in forward passes), or
            measure.NAME.PATH (result of a diagnostic); also a difference "A - B" of two of these.
        of: arm that the claim is about.
        above: arm, or number, that it exceeds by more than `by`.
        below: arm, or number, that exceeds it by more than `by`.
        near: arm, or number, from which it differs by at most `by`.
        by: margin, in the unit of the metric.
        times: factor by which the number of the other arm is multiplied before the comparison.
    """

    metric: str
    of: str
    above: str | float | None = None
    below: str | float | None = None
    near: str | float | None = None
    by: float = 0.0
    times: float = 1.0

    @property
    def relation(self) -> str:
        """Name of the relation that is given; empty unless it is exactly one."""
        given = [name for name in RELATIONS if getattr(self, name) is not None]
        return given[0] if len(given) == 1 else ""

    @property
    def other(self) -> str | float:
        """Arm or number to compare with."""
        found: str | float = getattr(self, self.relation)
        return found


RELATIONS = ("above", "below", "near")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A paper's claim as something that a sweep can confirm or refute.

    Args:
        claim: the claim, in one sentence.
        reference: paper.
        reduced: how this experiment is smaller than the paper's.
        expect: comparisons; the claim is shown if all of them are.
        measure: diagnostics by name, for metrics that are not in the results of a run.
        doubt: what a reader should know before believing the verdict.
    """

    claim: str
    reference: str
    reduced: str
    expect: list[Expectation]
    measure: Mapping[str, Any] = field(default_factory=dict)
    doubt: str = ""


def problems_of(finding: Finding, arms: Sequence[str], evaluations: Sequence[str]) -> Iterator[tuple[Where, str]]:
    """Yield problems of a finding beyond the types of its values: (place inside `finding`, text)."""
    if not finding.expect:
        yield ("expect",), "there is no comparison; write at least one"
    for number, expected in enumerate(finding.expect):
        where = ("expect", number)
        if not expected.relation:
            yield where, f"expected exactly one of {', '.join(RELATIONS)}"
            continue
        for key, arm in (("of", expected.of), (expected.relation, expected.other)):
            if isinstance(arm, str) and arm not in arms:
                yield (*where, key), f"there is no row '{arm}'{suggest(arm, arms)}"
        for metric in terms(expected.metric):
            if text := _wrong_with(metric, evaluations, list(finding.measure)):
                yield (*where, "metric"), text


def terms(metric: str) -> list[str]:
    """Split a metric into the one or two numbers that it names: "A - B" is a difference."""
    return re.split(r"\s+-\s+", metric.strip())


def _wrong_with(metric: str, evaluations: Sequence[str], measures: Sequence[str]) -> str:
    """Return the problem of a single metric; empty if there is none."""
    if metric in evaluations:
        return ""
    prefix, _, rest = metric.partition(".")
    known = {"cost": COSTS, "measure": measures}.get(prefix)
    if prefix not in PREFIXES or not rest:
        return f"there is no evaluation '{metric}'{suggest(metric, [*evaluations, *(f'{p}.' for p in PREFIXES)])}"
    name = rest.partition(".")[0]
    if known is not None and name not in known:
        return f"there is no '{prefix}.{name}'{suggest(name, known)}"
    return ""
