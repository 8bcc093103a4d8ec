"""Robust accuracies of architectures in the literature, from the table that the package ships."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, groupby, islice
from pathlib import Path

import robustcli

_TABLE = "architectures/published.csv"
# Lines that are few enough to print without being asked for, and lines of each data set and threat if there are more.
_FEW, _OF_EACH = 8, 2


@dataclass(frozen=True)
class Published:
    """A robust accuracy in the literature: one line of the table.

    Args:
        architecture: name of the member.
        settings: its settings, as `robust show NAME` takes them, such as "depth=34 widen=10"; empty for the defaults.
        autoattack: robust accuracy under AutoAttack, as a fraction.
        clean: clean accuracy, as a fraction; None if not stated.
        data: data set.
        threat: norm and radius.
        training: name of the training method, or "not stated".
        images: additional training images, or "none".
        source: the paper.
        counted_by: source of the measurement.
    """

    architecture: str
    settings: str
    autoattack: float
    clean: float | None
    data: str
    threat: str
    training: str
    images: str
    source: str
    counted_by: str


def published(architecture: str) -> tuple[Published, ...]:
    """Return the published accuracies of an architecture: by data set and threat, the highest robust accuracy first."""
    found = [line for line in table() if line.architecture == architecture]
    return tuple(sorted(found, key=lambda line: (line.data, line.threat, -line.autoattack)))


def best_of(lines: Sequence[Published]) -> tuple[Published, ...]:
    """Return the lines of a short table: all if there are few, or else the first of each data set and threat."""
    if len(lines) <= _FEW:
        return tuple(lines)
    groups = groupby(lines, key=lambda line: (line.data, line.threat))
    return tuple(chain.from_iterable(islice(group, _OF_EACH) for _, group in groups))


@cache
def table() -> tuple[Published, ...]:
    """Return all lines of the table."""
    with (Path(robustcli.__file__).parent / _TABLE).open(encoding="utf-8", newline="") as file:
        return tuple(_line(row) for row in csv.DictReader(file))


def _line(row: dict[str, str]) -> Published:
    numbers = {"autoattack": float(row["autoattack"]), "clean": float(row["clean"]) if row["clean"] else None}
    return Published(**{**row, **numbers})  # type: ignore[arg-type]
