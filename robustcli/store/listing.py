"""Rows for `robust runs`: every run and stored evaluation below a folder, with a small index for speed.

The index `.robust-index.json` is in the folder. A row in it is used as long as the files of its run have the same
sizes and times; otherwise it is read again. Deleting the index is safe.
"""

import os
from pathlib import Path
from typing import Literal

from pydantic import Field

from robustcli.errors import RobustCliError
from robustcli.store.files import own_mark, read_yaml, write_text
from robustcli.store.models import Stored, parsed
from robustcli.store.provenance import read_provenance
from robustcli.store.results import EvalResults, Results, read_results, read_run_results
from robustcli.store.runs import RunFolder, is_in_use
from robustcli.store.search import run_folders

INDEX = ".robust-index.json"
# Change it when rows change, so that older indexes are not used.
_VERSION = 2
_WATCHED = ("spec.yaml", "provenance.json", "train.jsonl", "results.json")


class ListedEvaluation(Stored):
    """Accuracy of an evaluation, as fractions, and its verdict."""

    is_clean: bool
    correct: int
    total: int
    accuracy: float
    low: float
    high: float
    verdict: str | None


class RunRow(Stored):
    """A run, or an evaluation stored by `robust eval`.

    Args:
        run: folder, relative to the listed one.
        kind: "run" or "eval".
        status: finished, collapsed, rewound, failed, running, unfinished or damaged.
        text: more about the status, such as the damaged file.
        epoch: of the chosen weights, or the last one of an unfinished or running run, from 0.
        date: when the last session started, in ISO format.
        seconds: seconds of training, without checks, and of the evaluations.
        clean: clean accuracy; None if it is not known.
        variant: values of the spec that differ from other runs of its name; only set for shown rows.
    """

    run: str
    kind: Literal["run", "eval"]
    status: str
    text: str = ""
    name: str = ""
    seed: int | None = None
    defense: str = ""
    architecture: str = ""
    data: str = ""
    norm: str = ""
    eps: str = ""
    epoch: int | None = None
    date: str = ""
    seconds: float | None = None
    clean: float | None = None
    variant: str = ""
    evaluations: dict[str, ListedEvaluation] = Field(default_factory=dict)

    @property
    def strongest(self) -> tuple[str, ListedEvaluation] | None:
        """Name and result of the evaluation with the lowest robust accuracy."""
        attacked = [(key, found) for key, found in self.evaluations.items() if not found.is_clean]
        return min(attacked, key=lambda item: item[1].accuracy) if attacked else None

    @property
    def robust(self) -> float | None:
        """Lowest robust accuracy; None if nothing was attacked."""
        return None if self.strongest is None else self.strongest[1].accuracy


class _Named(Stored):
    name: str


class _ListedThreat(Stored):
    norm: str
    eps: float | str


class _ListedSpec(Stored):
    name: str
    seed: int
    data: _Named
    architecture: _Named
    threat: _ListedThreat
    defense: _Named


class _Entry(Stored):
    signature: list[int]
    row: RunRow


class _Index(Stored):
    version: int
    entries: dict[str, _Entry]


def list_runs(root: Path) -> list[RunRow]:
    """Return all runs and stored evaluations below a folder, sorted by name; damaged ones have a row too."""
    known = _read_index(root)
    entries, rows = {}, []
    for folder in run_folders(root) if root.is_dir() else ():
        if folder == root:
            continue
        name = folder.relative_to(root).as_posix()
        try:
            signature, files = _signature(folder)
        except OSError as error:
            rows.append(_damaged(name, error, is_run=True))
            continue
        if not files & {"spec.yaml", "results.json"}:
            continue
        entry = known.get(name)
        if entry is None or entry.signature != signature:
            entry = _Entry(signature=signature, row=_read_row(folder, name, is_run="spec.yaml" in files))
        # Read again next time, because new permissions do not change the signature.
        if entry.row.status != "damaged":
            entries[name] = entry
        # Not in the index, because no file changes when a run is killed.
        is_running = entry.row.status == "unfinished" and is_in_use(folder)
        rows.append(entry.row.model_copy(update={"status": "running"}) if is_running else entry.row)
    if entries != known:
        _write_index(root, entries)
    return rows


def list_folder(path: Path) -> list[RunRow]:
    """Return all runs and stored evaluations below a folder, or the folder itself, by path."""
    if not any((path / name).is_file() for name in ("spec.yaml", "results.json")):
        return [row.model_copy(update={"run": f"{path}/{row.run}"}) for row in list_runs(path)]
    # An absolute path, because "." has no name.
    folder = path.absolute()
    return [row.model_copy(update={"run": str(path)}) for row in list_runs(folder.parent) if row.run == folder.name]


def _signature(folder: Path) -> tuple[list[int], set[str]]:
    """Sizes and times of the files that a row depends on, and their names."""
    signature, names = [], set()
    with os.scandir(folder) as entries:
        for entry in sorted((entry for entry in entries if entry.name in _WATCHED), key=lambda entry: entry.name):
            status = entry.stat()
            signature += [_WATCHED.index(entry.name), status.st_mtime_ns, status.st_size]
            names.add(entry.name)
    return signature, names


def _read_index(root: Path) -> dict[str, _Entry]:
    """Entries of the index; none if there is no index, or one of another version."""
    try:
        index = _Index.model_validate_json((root / INDEX).read_bytes())
    except (OSError, ValueError):
        return {}
    return index.entries if index.version == _VERSION else {}


def _write_index(root: Path, entries: dict[str, _Entry]) -> None:
    try:
        write_text(root / INDEX, _Index(version=_VERSION, entries=entries).model_dump_json(), own_mark())
    except OSError:
        return  # A read-only folder can still be listed.


def _read_row(folder: Path, name: str, *, is_run: bool) -> RunRow:
    try:
        return _run_row(RunFolder(folder), name) if is_run else _eval_row(RunFolder(folder), name)
    except (RobustCliError, OSError) as error:
        return _damaged(name, error, is_run=is_run)


def _damaged(name: str, error: RobustCliError | OSError, *, is_run: bool) -> RunRow:
    text = f"{error.filename}: cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)
    return RunRow(run=name, kind="run" if is_run else "eval", status="damaged", text=text)


def _run_row(folder: RunFolder, name: str) -> RunRow:
    # Not checked as a spec, because those of other versions are listed too.
    spec = parsed(_ListedSpec, read_yaml(folder.spec), folder.spec)
    epochs = folder.epochs()
    sessions = read_provenance(folder.provenance).sessions if folder.provenance.is_file() else []
    results = read_run_results(folder.results) if folder.is_finished else None
    status, _, text = (folder.status() if results is None else results.status).partition(", ")
    last = epochs[-1].epoch if epochs else None
    return RunRow(
        run=name,
        kind="run",
        status=status,
        text=text,
        name=spec.name,
        seed=spec.seed,
        defense=spec.defense.name,
        architecture=spec.architecture.name,
        data=spec.data.name,
        norm=spec.threat.norm,
        eps=str(spec.threat.eps),
        epoch=last if results is None else results.epoch,
        date=sessions[-1].started if sessions else "",
        seconds=sum(record.seconds for record in epochs) + (0.0 if results is None else _seconds(results)),
        clean=None if results is None else _clean(results),
        evaluations={} if results is None else _evaluations(results),
    )


def _eval_row(folder: RunFolder, name: str) -> RunRow:
    results = read_results(folder.results)
    if not isinstance(results, EvalResults):
        raise RobustCliError(f"{folder.path}: found results of a run; expected spec.yaml next to them")
    return RunRow(
        run=name,
        kind="eval",
        status="finished",
        name=results.name,
        seed=results.training_seed,
        norm=results.threat.norm,
        eps=results.threat.eps,
        date=results.provenance.started,
        seconds=_seconds(results),
        clean=_clean(results),
        evaluations=_evaluations(results),
    )


def _seconds(results: Results) -> float:
    return sum(found.seconds for found in results.evaluations.values())


def _clean(results: Results) -> float | None:
    """The clean accuracy: that of an evaluation without attack if there is one."""
    keys = sorted(results.evaluations, key=lambda key: not results.evaluations[key].is_clean)
    return next((accuracy for key in keys if (accuracy := results.clean_accuracy(key)) is not None), None)


def _evaluations(results: Results) -> dict[str, ListedEvaluation]:
    return {
        key: ListedEvaluation(
            is_clean=found.is_clean,
            correct=found.correct,
            total=found.total,
            accuracy=found.accuracy,
            low=found.interval[0],
            high=found.interval[1],
            verdict=found.verdict,
        )
        for key, found in results.evaluations.items()
    }
