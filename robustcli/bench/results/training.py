"""Stored result of `robust bench train`."""

from typing import Any

from robustcli.bench.results.bases import Bench, TimedRow
from robustcli.store.models import Stored
from robustcli.store.passes import Passes


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
