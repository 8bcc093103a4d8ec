"""Results of two computations, without times."""

import json
from pathlib import Path
from typing import Any

_TIMES = ("seconds", "started", "command", "chain")


def results(folder: Path) -> Any:
    """The results and per-image results below a folder, by their places."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.name == "results.json":
            found[str(path.relative_to(folder))] = _timeless(json.loads(path.read_text()))
        elif path.suffix == ".csv":
            found[str(path.relative_to(folder))] = path.read_text()
    return found


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


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in _TIMES}
    return [_timeless(item) for item in value] if isinstance(value, list) else value
