"""Stored result of a finding: numbers of every arm and seed, comparisons and the verdict."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from robustcli.store.files import read_json
from robustcli.store.models import Stored, parsed

Verdict = Literal["SHOWN", "NOT SHOWN", "REFUTED"]


class Comparison(Stored):
    """One expected relation and its result.

    Args:
        text: the expectation as text.
        effects: effect of every seed, in the direction that the claim predicts; for `near`, the difference.
        interval: 95 % interval of the mean effect over seeds (Student's t, paired by seed).
        needed: value that the effect has to exceed; for `near`, the maximum of its absolute value.
    """

    text: str
    effects: list[float]
    mean: float
    interval: Annotated[tuple[float, float], Field(strict=False)]
    needed: float
    verdict: Verdict


class FindingResult(Stored):
    """Result of `robust reproduce findings/NAME`.

    Args:
        name: name of the finding.
        seeds: seeds, in the order of all lists.
        values: by metric, then by arm, one number per seed.
        training_seconds: total of all runs, without evaluations.
        hardware: machine of the runs.
    """

    name: str
    claim: str
    reference: str
    reduced: str
    doubt: str = ""
    seeds: list[int]
    values: dict[str, dict[str, list[float]]]
    comparisons: list[Comparison]
    verdict: Verdict
    training_seconds: float
    hardware: str
    torch: str


def read_finding(path: Path) -> FindingResult:
    """Read a stored finding.

    Raises:
        RobustCliError: the file is not a finding.
    """
    return parsed(FindingResult, read_json(path), path)
