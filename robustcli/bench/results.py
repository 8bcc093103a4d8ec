"""What tables read of the results of `robust bench`, with types; other keys of the files are ignored."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import Field

from robustcli.store.models import Stored, parsed

Pair = Annotated[tuple[float, float], Field(strict=False)]
"""Forward and gradient passes for one image, or the ends of an interval."""


class Ratio(Stored):
    """Median, minimum and maximum over rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


class Row(Stored):
    """One implementation.

    Args:
        ratio: our speed as a multiple of its speed; None for ours.
        over_limit: its time as a multiple of that of the bare passes.
        verdict: on the ratio.
        peak_bytes: peak memory; None if it was not measured.
    """

    name: str
    ratio: Ratio | None = None
    over_limit: Ratio | None = None
    verdict: str | None = None
    peak_bytes: int | None = None

    @property
    def peak(self) -> str:
        """Peak memory in 10^6 bytes."""
        return "" if self.peak_bytes is None else f"{self.peak_bytes / 1e6:,.1f}"


class TrainingRow(Row):
    """One implementation of an update; passes are by kind."""

    images_per_second: float
    seconds: Ratio
    passes: dict[str, float] | None = None


class TrainingDefense(Stored):
    """Updates of one defense, ours first; `least_passes` is None if the minimum is not known."""

    passes: dict[str, float]
    least_passes: dict[str, float] | None = None
    rows: list[TrainingRow]


class TrainingSettings(Stored):
    """Settings of all updates of a benchmark."""

    architecture: dict[str, Any]
    weights: str
    batch_size: int
    precision: str
    channels_last: bool
    compile: bool
    rounds: int = 0
    clock: str = "cpu"

    def method(self, defense: str) -> str:
        """Name of a defense, with the weight perturbation."""
        return defense if self.weights == "none" else f"{defense} with {self.weights}"

    @property
    def network(self) -> str:
        """Architecture, with its width if it has one."""
        width = f" width {self.architecture['width']}" if "width" in self.architecture else ""
        return f"{self.architecture['name']}{width}"


class TrainingBench(Stored):
    """Result of `robust bench train`."""

    settings: TrainingSettings
    defenses: dict[str, TrainingDefense]
    notes: list[str] = Field(default_factory=list)


class EvaluationPasses(Stored):
    """Passes for one image; weight gradients are None if they were not counted."""

    forwards: float
    gradients: float
    weight_gradients: float | None = None


class EvaluationRow(Row):
    """One implementation of an evaluation; `robust` is the number of surviving images."""

    seconds: Ratio
    robust: int | None
    passes: EvaluationPasses


class EvaluationBench(Stored):
    """Result of `robust bench eval`."""

    subject: str
    threat: str
    images: int
    attack: str
    rows: list[EvaluationRow]


class DataRow(Row):
    """One input pipeline; the share is that of an update."""

    seconds_per_image: Ratio
    share_of_step: Ratio


class DataStep(Stored):
    """The update that input pipelines are compared with."""

    name: str


class DecodingRow(Stored):
    """One loader of image files."""

    name: str
    processors: int
    images_per_second: Ratio
    processor_ms_per_image: Ratio


class Decoding(Stored):
    """Decoding of large image files; keys after the rows are explained where they are measured."""

    file: Annotated[tuple[int, int], Field(strict=False)]
    size: int
    rows: list[DecodingRow]
    per_processor: dict[str, Ratio]
    scaling: Ratio
    scaling_quietest: float | None = None
    processor_scaling: Ratio | None = None
    lock_ms_per_image: Ratio | None = None


class DataBench(Stored):
    """Result of `robust bench data`; files of version 0.1 have no decoding."""

    batch_size: int
    step: DataStep
    rows: list[DataRow]
    decoding: Decoding | None = None


class Both(Stored):
    """Forward passes, and passes with a gradient to the images."""

    forward: Ratio
    gradient: Ratio


class Speeds(Stored):
    """Multiply-accumulates per second, in 10^9."""

    forward: float
    gradient: float


class ArchitectureRow(Stored):
    """One network; ratios are multiply-accumulates per second as multiples of the reference's."""

    name: str
    settings: dict[str, Any]
    macs: int
    seconds_per_image: Both
    gmacs_per_second: Speeds
    ratio: Both
    is_slow: bool

    @property
    def label(self) -> str:
        """Name with the settings that differ from the defaults."""
        return architecture_label(self.name, self.settings)


class ArchitectureBench(Stored):
    """Result of `robust bench architectures`."""

    yardstick: str
    rows: list[ArchitectureRow]


class ScalingPoint(Stored):
    """One value on an axis, and how far its time is from the line, as a share."""

    value: int
    seconds: Ratio
    apart: float
    is_off: bool


class ScalingAxis(Stored):
    """One axis with its line."""

    start: float
    slope: float
    points: list[ScalingPoint]


class ScalingBench(Stored):
    """Result of `robust bench scaling`."""

    architecture: str
    axes: dict[str, ScalingAxis]


class SpeedRow(Stored):
    """One engine of AutoAttack; passes are those for a survivor and for a broken image, or a mean of both."""

    name: str
    seconds: Ratio
    speed: Ratio | None
    over_limit: Ratio | None = None
    verdict: str | None = None
    robust: int | None
    passes: dict[str, Pair]


class SpeedBench(Stored):
    """Result of `robust bench autoattack`."""

    subject: str
    threat: str
    images: int
    rows: list[SpeedRow]


class ConformanceRow(Stored):
    """One attack: survivors of both engines over all runs, their difference in points, and where they differ."""

    part: str
    runs: int
    native: int
    package: int
    points: float
    interval: Pair
    is_within: bool
    broken_by_native_alone: list[int]
    broken_by_package_alone: list[int]


class ConformanceBench(Stored):
    """Result of `robust bench conformance`."""

    subject: str
    threat: str
    images: int
    precision: str
    rows: list[ConformanceRow]


_Kind = TypeVar("_Kind", bound=Stored)


def typed(kind: type[_Kind], results: Sequence[Mapping[str, Any]] | Sequence[_Kind]) -> list[_Kind]:
    """Return results as models of one kind.

    Raises:
        RobustCliError: one is of another kind; names the keys.
    """
    return [
        found if isinstance(found, kind) else parsed(kind, found, "a result of `robust bench`") for found in results
    ]


def architecture_label(name: str, settings: Mapping[str, Any]) -> str:
    """Return the name of a network with the settings that differ from its defaults."""
    named = (
        f"{key} {value['name'] if isinstance(value, Mapping) else value}" for key, value in sorted(settings.items())
    )
    return f"{name} ({', '.join(named)})" if settings else name
