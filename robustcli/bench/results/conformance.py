"""Stored result of `robust bench conformance`."""

from robustcli.bench.results.bases import Pair, SubjectBench
from robustcli.store.models import Stored


class ConformanceRow(Stored):
    """One attack: survivors of both engines over all runs, their difference in points, and where they differ.

    Args:
        interval: paired 95 % interval of the difference.
        is_within: the native attack is not significantly weaker.
    """

    part: str
    runs: int
    native: int
    package: int
    points: float
    interval: Pair
    is_within: bool
    broken_by_native_alone: list[int]
    broken_by_package_alone: list[int]


class ConformanceBench(SubjectBench):
    """Result of `robust bench conformance`."""

    block = "conformance"

    precision: str
    rows: list[ConformanceRow]
