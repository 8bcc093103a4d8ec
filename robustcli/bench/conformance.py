"""`robust bench conformance`: compare the robust accuracies of the native engine and the package, attack by attack."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import torch
from scipy.stats import binom
from torch import Tensor

from robustcli.bench.results.conformance import ConformanceBench, ConformanceRow
from robustcli.bench.subjects import BenchSubject
from robustcli.evaluation.restore import settled
from robustcli.evaluators.autoattack import AutoAttack, Part
from robustcli.statistics import paired_difference

PARTS: tuple[Part, ...] = ("apgd-ce", "apgd-t", "fab-t", "square")
# Maximum mean excess of the native robust accuracy over the package's, in percentage points.
TOLERANCE = 0.2
_WITHOUT_NOISE = ("fab-t",)
_ROUNDING = 1e-9
# Level of the paired intervals.
_LEVEL = 0.95


@dataclass(frozen=True)
class Comparison:
    """Results of both engines for one attack, or all of them, on the same images.

    Args:
        part: attack of AutoAttack, or "standard".
        native, package: masks (runs, n) of the surviving images; each run has its own noise.
    """

    part: str
    native: Tensor
    package: Tensor

    @property
    def points(self) -> float:
        """Native minus package robust accuracy in percentage points; above 0 the native attack is weaker."""
        return 100 * float(self.native.double().mean() - self.package.double().mean())

    def row(self) -> ConformanceRow:
        """Return counts, the difference with its paired 95 % interval, and the images that only one engine breaks."""
        only_native = (~self.native & self.package).nonzero()[:, 1].tolist()
        only_package = (self.native & ~self.package).nonzero()[:, 1].tolist()
        low, high = paired_difference(len(only_package), len(only_native), self.native.numel())
        return ConformanceRow(
            part=self.part,
            runs=len(self.native),
            native=int(self.native.sum()),
            package=int(self.package.sum()),
            points=self.points,
            interval=(100 * low, 100 * high),
            is_within=low <= 0,
            broken_by_native_alone=only_native,
            broken_by_package_alone=only_package,
        )


def bench_conformance(
    subject: BenchSubject, precision: Literal["fp32", "fast"], runs: int = 1, only: Sequence[Part] = ()
) -> ConformanceBench:
    """Compare every attack of standard AutoAttack, and all together, on correctly classified images.

    Args:
        precision: precision of the native search.
        runs: number of runs of random attacks, each with another seed; on some networks results vary between runs.
        only: compare only these attacks, and not all together.
    """
    comparisons = []
    with settled(subject.network, subject.x.device.type):
        for attacks in (*((part,) for part in only or PARTS), *([] if only else [None])):
            native = AutoAttack(attacks=attacks, precision=precision)
            package = AutoAttack(attacks=attacks, engine="reference")
            part = attacks[0] if attacks else "standard"
            seeds = range(1 if part in _WITHOUT_NOISE else runs)
            survives = [
                torch.stack([subject.gather(evaluator, seed=seed).survives for seed in seeds])
                for evaluator in (native, package)
            ]
            comparisons.append(Comparison(part, *survives))
    return ConformanceBench(
        **subject.header(["pyautoattack"]),
        precision=precision,
        rows=[comparison.row() for comparison in comparisons],
    )


def merged(benches: Sequence[ConformanceBench]) -> list[ConformanceBench]:
    """Merge results to one per network, threat and precision, with the row of the most runs for each attack."""
    found: dict[tuple[object, ...], ConformanceBench] = {}
    for bench in benches:
        key = (bench.subject, bench.threat, bench.images, bench.precision)
        rows = {row.part: row for row in found[key].rows} if key in found else {}
        for row in bench.rows:
            if row.part not in rows or row.runs > rows[row.part].runs:
                rows[row.part] = row
        found[key] = bench.model_copy(update={"rows": list(rows.values())})
    return list(found.values())


def average_points(benches: Sequence[ConformanceBench]) -> dict[str, float]:
    """Return the mean difference of every attack over networks and threats, in percentage points."""
    points: dict[str, list[float]] = {}
    for bench in benches:
        for row in bench.rows:
            points.setdefault(row.part, []).append(row.points)
    return {part: fmean(found) for part, found in points.items()}


def beyond(benches: Sequence[ConformanceBench]) -> list[str]:
    """Return descriptions of the comparisons in which the native attack is significantly weaker."""
    return [
        f"{row.part} on {bench.subject}, {bench.threat}" for bench in benches for row in bench.rows if not row.is_within
    ]


def by_chance(comparisons: int) -> int:
    """Return the maximum number of comparisons of equal attacks outside their interval, with 95 % confidence."""
    return int(binom.ppf(_LEVEL, comparisons, (1 - _LEVEL) / 2))


def holds(benches: Sequence[ConformanceBench]) -> bool:
    """Return True if no attack is weaker than the package's by more than the tolerance or chance."""
    is_by_chance = len(beyond(benches)) <= by_chance(sum(len(bench.rows) for bench in benches))
    return is_by_chance and all(points <= TOLERANCE + _ROUNDING for points in average_points(benches).values())
