"""Base classes of the stored results of all benchmarks, and of their rows."""

from typing import Annotated, ClassVar

from pydantic import Field

from robustcli.measuring.machine import Circumstances
from robustcli.measuring.timing import Spread
from robustcli.store.models import Stored

Pair = Annotated[tuple[float, float], Field(strict=False)]
"""Forward and gradient passes for one image, or the ends of an interval."""


class Bench(Circumstances):
    """Result of one benchmark; `block` is the name of its block in a README."""

    block: ClassVar[str]


class TimedBench(Bench):
    """Result of rounds that were timed; the clock is that of the processor or of the wall."""

    clock: str
    rounds: int


class SubjectBench(Bench):
    """Result of evaluations of a network, in a threat model, on a number of images."""

    subject: str
    threat: str
    images: int


class Row(Stored):
    """One implementation.

    Args:
        ratio: our speed as a multiple of its speed; None for ours.
        verdict: on the ratio; None for ours and its repetition.
    """

    name: str
    ratio: Spread | None = None
    verdict: str | None = None

    @property
    def ratio_text(self) -> str:
        """Median, minimum and maximum of the ratio; "" for ours."""
        return "" if self.ratio is None else str(self.ratio)


class TimedRow(Row):
    """One implementation of an update or an evaluation.

    Args:
        over_limit: its time as a multiple of that of the bare passes.
        beside_torchattacks: its speed as a multiple of that of torchattacks; None if that was not measured.
        peak_bytes: peak memory, besides what was held before.
    """

    seconds: Spread
    images_per_second: float
    over_limit: Spread
    beside_torchattacks: Spread | None = None
    peak_bytes: int

    @property
    def peak(self) -> str:
        """Peak memory in 10^6 bytes."""
        return f"{self.peak_bytes / 1e6:,.1f}"
