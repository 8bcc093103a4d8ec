"""`robust bench conformance`: compare the robust accuracies of the native engine and the package, attack by attack."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from robustcli.bench.subjects import BenchSubject
from robustcli.evaluation.evaluate import settled
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

    def to_json(self) -> dict[str, Any]:
        """Return counts, the difference with its paired 95 % interval, and the images that only one engine breaks."""
        only_native = (~self.native & self.package).nonzero()[:, 1].tolist()
        only_package = (self.native & ~self.package).nonzero()[:, 1].tolist()
        low, high = paired_difference(len(only_package), len(only_native), self.native.numel())
        return {
            "part": self.part,
            "runs": len(self.native),
            "native": int(self.native.sum()),
            "package": int(self.package.sum()),
            "points": self.points,
            "interval": [100 * low, 100 * high],
            "is_within": low <= 0,
            "broken_by_native_alone": only_native,
            "broken_by_package_alone": only_package,
        }


def bench_conformance(
    subject: BenchSubject, precision: Literal["fp32", "fast"], runs: int = 1, only: Sequence[Part] = ()
) -> dict[str, Any]:
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
    return {
        **subject.to_json(["pyautoattack"]),
        "precision": precision,
        "rows": [comparison.to_json() for comparison in comparisons],
    }


def merged(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Merge results to one per network, threat and precision, with the row of the most runs for each attack."""
    heads: dict[tuple[str, ...], dict[str, Any]] = {}
    for result in results:
        key = tuple(str(result.get(name)) for name in ("subject", "threat", "images", "precision"))
        head = heads.setdefault(key, {**result, "rows": []})
        rows = {row["part"]: row for row in head["rows"]}
        for row in result["rows"]:
            if row["part"] not in rows or row["runs"] > rows[row["part"]]["runs"]:
                rows[row["part"]] = row
        head["rows"] = list(rows.values())
    return list(heads.values())


def average_points(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the mean difference of every attack over networks and threats, in percentage points."""
    parts = dict.fromkeys(row["part"] for result in results for row in result["rows"])
    means = {}
    for part in parts:
        points = [row["points"] for result in results for row in result["rows"] if row["part"] == part]
        means[part] = sum(points) / len(points)
    return means


def beyond(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return descriptions of the comparisons in which the native attack is significantly weaker."""
    return [
        f"{row['part']} on {result['subject']}, {result['threat']}"
        for result in results
        for row in result["rows"]
        if not row["is_within"]
    ]


def by_chance(comparisons: int) -> int:
    """Return the maximum number of comparisons of equal attacks outside their interval, with 95 % confidence."""
    share = 0.5 * (1 - _LEVEL)
    most, likely = -1, 0.0
    while likely < _LEVEL:
        most += 1
        likely += math.comb(comparisons, most) * share**most * (1 - share) ** (comparisons - most)
    return most


def holds(results: Sequence[Mapping[str, Any]]) -> bool:
    """Return True if no attack is weaker than the package's by more than the tolerance or chance."""
    comparisons = sum(len(result["rows"]) for result in results)
    is_by_chance = len(beyond(results)) <= by_chance(comparisons)
    return is_by_chance and all(points <= TOLERANCE + _ROUNDING for points in average_points(results).values())
