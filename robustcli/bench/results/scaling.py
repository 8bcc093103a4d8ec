"""Stored result of `robust bench scaling`."""

from typing import Literal

from robustcli.bench.results.bases import TimedBench
from robustcli.measuring.timing import Spread
from robustcli.store.models import Stored


class ScalingPoint(Stored):
    """One value on an axis.

    Args:
        size: expected size of the cost.
        apart: distance of the time from the line, as a share.
    """

    value: int
    size: float
    seconds: Spread
    apart: float
    is_off: bool


class ScalingAxis(Stored):
    """One axis with its line."""

    start: float
    slope: float
    points: list[ScalingPoint]


class ScalingSettings(Stored):
    """Values of the axes that are not varied."""

    batch: int
    steps: int
    width: int


class ScalingBench(TimedBench):
    """Result of `robust bench scaling`."""

    block = "scaling"

    bench: Literal["scaling"] = "scaling"
    architecture: str
    settings: ScalingSettings
    axes: dict[str, ScalingAxis]
