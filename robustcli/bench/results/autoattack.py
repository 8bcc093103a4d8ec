"""Stored result of `robust bench autoattack`."""

from pydantic import Field

from robustcli.bench.results.bases import Pair, SubjectBench, TimedBench
from robustcli.measuring.timing import Spread
from robustcli.store.models import Stored


class OutcomePasses(Stored):
    """Passes for an image that survives and for one that breaks."""

    survivor: Pair
    broken: Pair


class MeanPasses(Stored):
    """Passes of an engine that does not distinguish images: the mean of all that are classified correctly."""

    mean: Pair = Field(validation_alias="right when clean", serialization_alias="right when clean")


class SpeedRow(Stored):
    """One engine of AutoAttack.

    Args:
        speed: its speed as a multiple of the package's; None for the package.
        verdict: on the speed; None for the package and the limit.
        over_limit: its time as a multiple of that of the bare passes.
        robust: number of surviving images; None for the limit.
        broken_alone, broken_by_the_package_alone: images that only this engine breaks, or only the package.
    """

    name: str
    seconds: Spread
    speed: Spread | None
    verdict: str | None
    over_limit: Spread
    robust: int | None
    broken_alone: list[int]
    broken_by_the_package_alone: list[int]
    passes: OutcomePasses | MeanPasses


class SpeedBench(SubjectBench, TimedBench):
    """Result of `robust bench autoattack`.

    Args:
        clean: share of images that are classified correctly without an attack.
        compile_seconds: None without compilation.
        least_passes_per_survivor: minimum of forward and gradient passes.
    """

    block = "speed"

    clean: float
    compile_seconds: float | None
    least_passes_per_survivor: list[int]
    rows: list[SpeedRow]
