"""What `robust plan` finds: times in seconds of wall-clock time, memory in bytes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter

from robustcli.measuring.machine import Circumstances
from robustcli.measuring.timing import Spread
from robustcli.store.passes import Passes


@dataclass(frozen=True)
class Bounds:
    """Values at the lowest and the highest assumed robust accuracy."""

    low: float
    high: float

    def __add__(self, other: "Bounds") -> "Bounds":
        return Bounds(self.low + other.low, self.high + other.high)

    def __mul__(self, times: float) -> "Bounds":
        return Bounds(times * self.low, times * self.high)

    @property
    def middle(self) -> float:
        return (self.low + self.high) / 2


@dataclass(frozen=True, kw_only=True)
class Images:
    """The images of the spec.

    Args:
        shape: shape of one image, as text.
        sizes: number of images by split.
        replaced: why random images replace them; None if they do not.
    """

    shape: str
    sizes: dict[str, int]
    replaced: str | None


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Training.

    Args:
        measured: number of updates that were measured.
        update: their median.
        seconds: all updates, without averaging and storing the weights after epochs.
        check: check after one epoch.
    """

    updates: int
    epochs: int
    batch_size: int
    measured: int
    update: float
    seconds: float
    check: Bounds


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """One evaluation.

    Args:
        survivors: assumed robust accuracy; None if nothing is attacked.
        passes: forward passes and gradients of all images together.
    """

    images: int
    survivors: Bounds | None
    passes: Bounds
    seconds: Bounds


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory of the process.

    Args:
        peak: largest memory so far; the resident set on a CPU.
        device: memory of the GPU; None on a CPU.
        free: memory that was free at the beginning, if it is known.
    """

    peak: int
    device: int | None
    free: int | None = None


@dataclass(frozen=True)
class Saving:
    """Speed of updates with other settings.

    Args:
        change: the settings, as overrides.
        speed: as a multiple of the speed without them; None if it was not measured.
        verdict: faster, slower, or why neither can be said.
    """

    change: str
    speed: Spread | None
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cost of one run.

    Args:
        machine: header with code, machine and versions.
        passes_per_image: passes of an update; None if the network has no convolution.
        start: importing the libraries and reading the images.
        training: None if an update does not fit into memory.
        seconds_of_a_pass: a pass of one image in an evaluation, forwards or backwards.
        seconds: the whole run.
    """

    machine: Circumstances
    name: str
    digest: str
    images: Images
    parameters: int
    macs: int
    passes_per_image: Passes | None
    memory: Memory
    notes: list[str]
    start: float = 0.0
    training: TrainingPlan | None = None
    seconds_of_a_pass: float = 0.0
    evaluations: dict[str, EvaluationPlan] = field(default_factory=dict)
    savings: list[Saving] = field(default_factory=list)
    seconds: Bounds = Bounds(0.0, 0.0)

    @property
    def fits(self) -> bool:
        """True if everything fits into memory, so that it could be measured."""
        return self.training is not None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        plain = asdict(self)
        del plain["machine"]
        return {**self.machine.to_json(), "fits": self.fits, **plain}

    @classmethod
    def of_json(cls, found: Any) -> "Plan":
        """Plan from its plain data.

        Raises:
            ValueError: it is something else.
        """
        if not isinstance(found, Mapping):
            raise ValueError("expected a mapping")
        return TypeAdapter(cls).validate_python({**found, "machine": found})


@dataclass(frozen=True)
class RowPlan:
    """The cost of one row of a sweep, whose seeds cost the same.

    Args:
        seeds: number of seeds.
        runs: status by the folder of every seed; None unless it was asked for.
        left: number of seeds without results.
    """

    plan: Plan
    seeds: int
    runs: dict[str, str] | None = None
    left: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain data, without the memory, because one process measures all rows."""
        found = self.plan.to_json()
        del found["memory"]
        status = {} if self.runs is None else {"runs": self.runs, "left": self.left}
        return {"seeds": self.seeds, **found, **status}
