"""Stored result of `robust bench conformance --quick`."""

from typing import Literal

from robustcli.bench.results.bases import Pair, SubjectBench
from robustcli.store.models import Stored


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
