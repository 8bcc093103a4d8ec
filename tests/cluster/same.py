"""Results of two computations, without times."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

_CIRCUMSTANCES = ("seconds", "started", "command", "commit", "dirty", "chain")


def results(folder: Path) -> Any:
    """The results and per-image results below a folder, by path."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.name == "results.json":
            found[str(path.relative_to(folder))] = _without(_CIRCUMSTANCES, json.loads(path.read_text()))
        elif path.suffix == ".csv":
            found[str(path.relative_to(folder))] = path.read_text()
    return found


def evaluations(folder: Path) -> Any:
    """Stored evaluations below a folder, without what depends on the batches.

    These are the rounding of margins and the number of proposals Square tries in one pass.
    """
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("results.json")):
        found[str(path.relative_to(folder))] = _without((*_CIRCUMSTANCES, "forwards"), json.loads(path.read_text()))
    for path in sorted(folder.rglob("*.csv")):
        lines = (line.split(",") for line in path.read_text().splitlines()[1:])
        found[str(path.relative_to(folder))] = [(line[:-2], [float(value) for value in line[-2:]]) for line in lines]
    return found


def close_to(found: Any) -> Any:
    """Evaluations, compared up to rounding of margins and sizes."""
    return {
        name: [(texts, pytest.approx(numbers, abs=1e-4)) for texts, numbers in value] if ".csv" in name else value
        for name, value in found.items()
    }


def table(text: str) -> str:
    """A table of a sweep without the speeds."""
    lines = [line.split("|") for line in text.splitlines()]
    (column,) = [line.index(" images/s ") for line in lines if " images/s " in line]
    return "\n".join("|".join(line[:column] + line[column + 1 :]) if len(line) > 1 else line[0] for line in lines)


def weights(folder: Path) -> dict[str, bytes]:
    """Digests of the weights below a folder, from the chains of results.json."""
    found = {}
    for path in sorted(folder.rglob("results.json")):
        found[str(path.relative_to(folder))] = json.loads(path.read_text())["chain"]["links"]["weights"]
    return found


def _without(left_out: Collection[str], value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without(left_out, item) for key, item in value.items() if key not in left_out}
    return [_without(left_out, item) for item in value] if isinstance(value, list) else value
