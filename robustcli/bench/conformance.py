"""The story of `robust bench conformance`: does the native engine break what the package breaks, attack by attack?"""

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
# Points by which the native robust accuracy may exceed the package's on average.
TOLERANCE = 0.2
_WITHOUT_NOISE = ("fab-t",)
_ROUNDING = 1e-9
# Of the paired intervals.
_LEVEL = 0.95


@dataclass(frozen=True)
class Comparison:
    """One attack, or all of them, by both engines on the same images.

    Args:
        part: of AutoAttack, or "standard".
        native, package: (runs, n) who survives; each run has noise of its own.
    """

    part: str
    native: Tensor
    package: Tensor

    @property
    def points(self) -> float:
        """Native minus package robust accuracy, in percentage points; above 0 the native attack is the weaker one."""
        return 100 * float(self.native.double().mean() - self.package.double().mean())

    def to_json(self) -> dict[str, Any]:
        """Counts, the difference with its paired 95 % interval, and the images that one engine alone breaks."""
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
    """Every part of standard AutoAttack on all images that are right when clean, and then all parts together.

    Args:
        precision: of the native search.
        runs: of what draws noise, each with another seed: on some networks luck decides over many images.
        only: these parts, and not all together.
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
    """One result per network, threat and precision: of each part the row with the most runs, which says the most."""
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
    """Mean difference of every part over networks and threats, in points."""
    parts = dict.fromkeys(row["part"] for result in results for row in result["rows"])
    means = {}
    for part in parts:
        points = [row["points"] for result in results for row in result["rows"] if row["part"] == part]
        means[part] = sum(points) / len(points)
    return means


def beyond(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Comparisons in which the native attack is the weaker one by more than the paired interval, in words."""
    return [
        f"{row['part']} on {result['subject']}, {result['threat']}"
        for result in results
        for row in result["rows"]
        if not row["is_within"]
    ]


def by_chance(comparisons: int) -> int:
    """How many of so many comparisons of equal attacks lie beyond their interval at most, with 95 % confidence."""
    share = 0.5 * (1 - _LEVEL)
    most, likely = -1, 0.0
    while likely < _LEVEL:
        most += 1
        likely += math.comb(comparisons, most) * share**most * (1 - share) ** (comparisons - most)
    return most


def holds(results: Sequence[Mapping[str, Any]]) -> bool:
    """Whether no part is weaker than the package's: on average by more than a tolerance, on networks than chance."""
    comparisons = sum(len(result["rows"]) for result in results)
    is_by_chance = len(beyond(results)) <= by_chance(comparisons)
    return is_by_chance and all(points <= TOLERANCE + _ROUNDING for points in average_points(results).values())
