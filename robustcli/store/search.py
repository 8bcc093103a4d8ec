"""Find the folders of runs and of stored evaluations below a folder."""

import os
from collections.abc import Iterator
from pathlib import Path

from robustcli.errors import RobustCliError

# Names of which the folder of a run or of a stored evaluation has at least one.
_OWN = frozenset({"spec.yaml", "results.json", "checkpoints", "job"})
# Names that only a run which has begun, or a result, has: nothing inside such a folder is another run.
_CLOSED = frozenset({"results.json", "provenance.json", "train.jsonl"})
_INSIDE = frozenset({"checkpoints", "evaluations", "job"})
_DEEPEST = 8
# Folders without a run that may be searched, and how many more for every run, so that a disk is not searched.
_MOST, _MOST_EACH = 5_000, 20


def run_folders(root: Path) -> Iterator[Path]:
    """Yield the folders of runs and evaluations below a folder, or itself, sorted by name, to a depth of 8.

    Folders that cannot be read are yielded too; hidden ones are left out.

    Raises:
        RobustCliError: there are thousands of folders without a run, as on a whole disk.
        OSError: the folder itself cannot be read.
    """
    found, others = 0, 0
    left = [(root, 0)]
    while left:
        folder, depth = left.pop()
        try:
            names, inner = _content(folder)
        except OSError:
            if folder == root:
                raise
            yield folder
            continue
        if names & _OWN:
            found += 1
            yield folder
        else:
            others += 1
        if others > _MOST + _MOST_EACH * found:
            raise RobustCliError(
                f"{root}: the search met {others:,} folders without a run and stopped; name the folder of the runs"
            )
        if depth < _DEEPEST and not names & _CLOSED:
            left += [(path, depth + 1) for path in reversed(inner)]


def _content(folder: Path) -> tuple[set[str], list[Path]]:
    """Return the names in a folder, and the folders that may hold runs, sorted by name."""
    names, inner = set(), []
    with os.scandir(folder) as entries:
        for entry in entries:
            names.add(entry.name)
            if entry.name in _INSIDE or entry.name.startswith(".") or not entry.is_dir():
                continue
            # A link to a folder around it leads round in a circle.
            if entry.is_symlink() and Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(entry)):
                continue
            inner.append(folder / entry.name)
    return names, sorted(inner)
