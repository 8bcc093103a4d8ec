"""Stored result of a finding: numbers of every arm and seed, comparisons and the verdict."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from robustcli.store.files import read_json
from robustcli.store.models import Stored, parsed

Verdict = Literal["SHOWN", "NOT SHOWN", "REFUTED"]


class Comparison(Stored):
    """One expected relation and what the seeds say about it.

    Args:
        text: the expectation in words.
        effects: of every seed, in the direction that the claim predicts; for `near`, the difference.
        interval: 95 % interval of the mean effect over seeds (Student's t, paired by seed).
        needed: value that the effect has to exceed; for `near`, that its size must not exceed.
    """

    text: str
    effects: list[float]
    mean: float
    interval: Annotated[tuple[float, float], Field(strict=False)]
    needed: float
    verdict: Verdict


class FindingResult(Stored):
    """What `robust reproduce findings/NAME` found.

    Args:
        name: of the finding.
        seeds: in the order of all lists.
        values: by metric, then by arm, one number for each seed.
        training_seconds: of all runs together, without evaluations.
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
        RobustCliError: the file is not one.
    """
    return parsed(FindingResult, read_json(path), path)
