"""Stored results of `robust bench`: benchmarks return these models, and tables read them.

Keys of older files that no table shows have a default here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from robustcli.errors import RobustCliError
from robustcli.measuring.machine import Circumstances
from robustcli.measuring.timing import Spread
from robustcli.store.models import Stored, parsed
from robustcli.store.passes import Passes

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


class TrainingRow(TimedRow):
    """One implementation of an update."""

    passes: Passes


class TrainingDefense(Stored):
    """Updates of one defense, ours first; `least_passes` is None if the minimum is not known."""

    passes: Passes
    least_passes: Passes | None
    rows: list[TrainingRow]


class TrainingSettings(Stored):
    """Settings of all updates of a benchmark; `architecture` has a name and parameters."""

    architecture: dict[str, Any]
    weights: str
    batch_size: int
    image: list[int]
    precision: str
    channels_last: bool
    compile: bool
    rounds: int
    clock: str

    def method(self, defense: str) -> str:
        """Name of a defense, with the weight perturbation."""
        return defense if self.weights == "none" else f"{defense} with {self.weights}"

    @property
    def network(self) -> str:
        """Architecture, with its width if it has one."""
        width = f" width {self.architecture['width']}" if "width" in self.architecture else ""
        return f"{self.architecture['name']}{width}"


class TrainingBench(Bench):
    """Result of `robust bench train`."""

    block = "training speed"

    settings: TrainingSettings
    notes: list[str]
    defenses: dict[str, TrainingDefense]


class EvaluationPasses(Stored):
    """Passes for one image; weight gradients are None if they were not counted."""

    forwards: float
    gradients: float
    weight_gradients: float | None


class EvaluationRow(TimedRow):
    """One implementation of an evaluation; `robust` is the number of surviving images."""

    robust: int | None
    passes: EvaluationPasses


class EvaluationBench(SubjectBench, TimedBench):
    """Result of `robust bench eval`."""

    block = "evaluation speed"

    bench: Literal["evaluation"] = "evaluation"
    attack: str
    notes: list[str]
    rows: list[EvaluationRow]


class DataRow(Row):
    """One input pipeline; the share is that of an update."""

    seconds_per_image: Spread
    share_of_step: Spread


class DataStep(Stored):
    """The update that input pipelines are compared with."""

    name: str
    seconds_per_image: Spread


class DecodingRow(Stored):
    """One loader of image files."""

    name: str
    processors: int
    images_per_second: Spread
    processor_ms_per_image: Spread


class Decoding(Stored):
    """Decoding of large image files.

    Args:
        file: width and height of the files.
        size: side of the crops.
        files: number of files.
        per_processor: our images per second of processor time as a multiple of the other loader's, by processors.
        scaling: throughput of our loader on all processors over that of as many loaders at once, each on its own.
        scaling_quietest: the same, of the fastest rounds.
        processor_scaling: our images per second of processor time on all processors over that on one.
        lock_ms_per_image: processor time under the interpreter lock.
    """

    file: list[int]
    size: int
    files: int
    rows: list[DecodingRow]
    per_processor: dict[str, Spread]
    scaling: Spread
    scaling_quietest: float
    processor_scaling: Spread
    lock_ms_per_image: Spread


class DataBench(TimedBench):
    """Result of `robust bench data`; files of version 0.1 have no decoding."""

    block = "data speed"

    bench: Literal["data"] = "data"
    image: list[int]
    batch_size: int
    step: DataStep
    rows: list[DataRow]
    decoding: Decoding | None = None


class BothSpreads(Stored):
    """Numbers for forward passes, and for passes with a gradient to the images."""

    forward: Spread
    gradient: Spread


class BothSpeeds(Stored):
    """Multiply-accumulates per second, in 10^9."""

    forward: float
    gradient: float


class ArchitectureRow(Stored):
    """One network; ratios are multiply-accumulates per second as multiples of the reference's.

    Args:
        settings: settings that differ from the defaults.
    """

    name: str
    settings: dict[str, Any]
    parameters: int
    macs: int
    seconds_per_image: BothSpreads
    gmacs_per_second: BothSpeeds
    ratio: BothSpreads
    is_slow: bool

    @property
    def label(self) -> str:
        """Name with the settings that differ from the defaults."""
        return architecture_label(self.name, self.settings)


class ArchitectureBench(TimedBench):
    """Result of `robust bench architectures`; rows are slow below the share `slow` of the reference's speed."""

    block = "architecture speed"

    bench: Literal["architectures"] = "architectures"
    image: list[int]
    batch_size: int
    yardstick: str
    slow: float
    rows: list[ArchitectureRow]


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


class QuickRow(Stored):
    """Quick evaluation with one seed; accuracies are fractions.

    Args:
        robust: number of images that no attack broke.
        is_misled: whether the quick evaluation reports that the network misleads its cheap attacks.
    """

    seed: int
    estimate: float
    interval: Pair
    robust: int
    is_misled: bool
    seconds: float


class FullRow(Stored):
    """AutoAttack on all images: number of survivors, and seconds."""

    robust: int
    seconds: float


class QuickBench(SubjectBench):
    """Result of `robust bench conformance --quick`; `clock` is "cpu" (processor time) or "wall"."""

    block = "quick evaluation"

    bench: Literal["quick"] = "quick"
    clock: str
    autoattack: FullRow
    rows: list[QuickRow]

    @property
    def accuracy(self) -> float:
        """Robust accuracy under AutoAttack."""
        return self.autoattack.robust / self.images

    def gap(self, row: QuickRow) -> float:
        """Estimate minus AutoAttack's robust accuracy, in percentage points."""
        return 100 * (row.estimate - self.accuracy)

    def ratio(self, row: QuickRow) -> float:
        """Time of AutoAttack as a multiple of that of the quick evaluation."""
        return self.autoattack.seconds / row.seconds

    def holds(self, row: QuickRow) -> bool:
        """Whether the interval contains AutoAttack's robust accuracy, up to rounding."""
        low, high = row.interval
        return low - 1e-9 <= self.accuracy <= high + 1e-9


def parse_benches(raw: Any, path: Path | str) -> list[Bench]:
    """Return the results in a file that `--out` of one benchmark wrote.

    Raises:
        RobustCliError: the file has other contents; the message has the keys.
    """
    heads = raw if isinstance(raw, list) else [raw]
    kinds = [_kind(head) for head in heads]
    if not heads or None in kinds:
        raise RobustCliError(f"{path}: not a result of `robust bench --out`")
    return [parsed(kind, head, path) for kind, head in zip(kinds, heads, strict=True) if kind is not None]


def _kind(head: Any) -> type[Bench] | None:
    """Return the kind of a stored result by the keys that only this kind has."""
    match head:
        case {"defenses": {}}:
            return TrainingBench
        case {"bench": "evaluation"}:
            return EvaluationBench
        case {"bench": "data"}:
            return DataBench
        case {"bench": "architectures"}:
            return ArchitectureBench
        case {"bench": "scaling"}:
            return ScalingBench
        case {"bench": "quick"}:
            return QuickBench
        case {"rows": [{"part": _}, *_]}:
            return ConformanceBench
        case {"rows": [{"speed": _}, *_]}:
            return SpeedBench
    return None


def architecture_label(name: str, settings: Mapping[str, Any]) -> str:
    """Return the name of a network with the settings that differ from its defaults."""
    named = (
        f"{key} {value['name'] if isinstance(value, Mapping) else value}" for key, value in sorted(settings.items())
    )
    return f"{name} ({', '.join(named)})" if settings else name
