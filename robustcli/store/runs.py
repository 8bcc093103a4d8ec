"""The run store: one folder per run; files are written atomically, and finished runs are never changed.

``runs/<name>/<digest>-s<seed>/`` contains spec.yaml (resolved), provenance.json, train.jsonl, checkpoints/,
evaluations/ (one file per finished evaluation) and, when everything is done, results.json.
"""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from robustcli.errors import InUseError, RobustCliError
from robustcli.registry.types import Precision
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.evaluation_files import EvaluationFiles
from robustcli.store.files import append, write_json, write_text
from robustcli.store.provenance import (
    DataRecord,
    Provenance,
    Session,
    read_provenance,
    this_session,
)
from robustcli.store.records import Record, parse_record
from robustcli.store.results import RunResults, read_run_results, write_results

if TYPE_CHECKING:
    from filelock import FileLock

# Version of the files of `robust bench` and `robust diagnose`; results have their own.
SCHEMA = 1
LOCK = "lock"


@dataclass(frozen=True)
class RunFolder:
    """Paths of the files of one run."""

    path: Path

    @property
    def spec(self) -> Path:
        return self.path / "spec.yaml"

    @property
    def provenance(self) -> Path:
        return self.path / "provenance.json"

    @property
    def log(self) -> Path:
        return self.path / "train.jsonl"

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    @property
    def best(self) -> Path:
        return self.path / "checkpoints" / "best.pt"

    @property
    def last(self) -> Path:
        return self.path / "checkpoints" / "last.pt"

    @property
    def derived(self) -> Path:
        """Spec that trains the network found by an architecture search."""
        return self.path / "derived.yaml"

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluations"

    def evaluation(self, key: str) -> EvaluationFiles:
        return EvaluationFiles(self.evaluations, key)

    @property
    def is_finished(self) -> bool:
        return self.results.exists()

    def _lines(self) -> list[str]:
        """Lines of train.jsonl, without an incomplete last line after a kill."""
        return self.log.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] if self.log.exists() else []

    def records(self) -> list[Record]:
        """Epochs and events of train.jsonl.

        Raises:
            RobustCliError: a line is damaged; the message has its number.
        """
        path = self.log
        return [parse_record(line, path, number) for number, line in enumerate(self._lines(), 1)]

    def epochs(self) -> list[Record]:
        """Epochs of train.jsonl, without events."""
        return [record for record in self.records() if record.event is None]

    def keep_epochs(self, count: int) -> None:
        """Drop events, damaged lines, and epochs from number `count` on, which will be run again.

        A damaged line costs only its measures: weights and state are in the checkpoint.
        """
        kept = [line for line, record in self._readable(warn=True) if record.event is None and record.epoch < count]
        write_text(self.log, "".join(f"{line}\n" for line in kept))

    def _readable(self, *, warn: bool = False) -> Iterator[tuple[str, Record]]:
        """Lines of train.jsonl with their records, without damaged ones."""
        for number, line in enumerate(self._lines(), 1):
            try:
                yield line, parse_record(line, self.log, number)
            except RobustCliError as damage:
                if warn:
                    warnings.warn(f"{damage}; the line is ignored", stacklevel=3)

    def begun_precision(self) -> Precision | None:
        """Precision of the training passes so far; None before the first checkpoint.

        Earlier versions did not record it, and trained in fp32 unless the spec stated another precision.
        """
        if not self.last.exists():
            return None
        asked = ExperimentSpec.read_stored(self.spec).train.precision
        if asked != "auto":
            return asked
        sessions = reversed(read_provenance(self.provenance).sessions)
        recorded = ((session.model_extra or {}).get("precision") for session in sessions)
        return next((one for one in recorded if one is not None), "fp32")

    def status(self) -> str:
        """Return finished, collapsed, rewound, failed, or the progress of an unfinished run."""
        if self.is_finished:
            return read_run_results(self.results).status
        records = [record for _, record in self._readable()]
        if records and records[-1].event is not None:
            return records[-1].event
        return f"unfinished, {len(records)} epoch{'s' * (len(records) != 1)}"


class Run:
    """A run that is open for writing, locked against other processes.

    Args:
        folder: paths of its files.
        spec: the experiment.
    """

    def __init__(self, folder: RunFolder, spec: ExperimentSpec, lock: "FileLock", made: Sequence[Path] = ()) -> None:
        self.folder = folder
        self.spec = spec
        self._lock = lock
        # Folders around it that did not exist before, from the inside.
        self._made = made

    @classmethod
    def open(cls, root: Path, spec: ExperimentSpec, *, resume: bool) -> "Run":
        """Lock the folder of this spec and seed; create it if it is new.

        Raises:
            RobustCliError: another process uses it; it is unfinished and `resume` is false; or its spec does not match
                its name.
        """
        folder = folder_of(root, spec)
        made = [path for path in (folder.path.parent, root) if not path.exists()]
        run = cls(folder, spec, lock_folder(folder.path), made)
        is_new = not folder.spec.exists()
        try:
            if is_new:
                write_text(folder.spec, spec.to_yaml())
            else:
                check_same(folder, spec, resume=resume)
        except BaseException:
            if is_new:
                run.abandon()
            else:
                # Another spec in this folder is not ours to remove.
                run.close()
            raise
        return run

    def close(self) -> None:
        """Unlock the folder."""
        self._lock.release()

    def abandon(self) -> None:
        """Unlock the folder after an error, and remove it if the run never began, so that it is not listed."""
        folder = self.folder
        with suppress(OSError):
            # Empty if the disk was full.
            folder.last.parent.rmdir()
        beginnings = [folder.spec, folder.provenance, folder.path / LOCK]
        if not (folder.log.exists() and folder.log.stat().st_size):
            beginnings.append(folder.log)
        with suppress(OSError):
            if set(folder.path.iterdir()) <= set(beginnings):
                for path in beginnings:
                    path.unlink(missing_ok=True)
        self.close()
        for path in (folder.path, *self._made):
            # Only if it is empty.
            with suppress(OSError):
                path.rmdir()

    def begin(self, device: str, data: DataRecord) -> None:
        """Record a session: code, device and data.

        Raises:
            RobustCliError: the data differ from those of an earlier session.
        """
        path = self.folder.provenance
        known = read_provenance(path) if path.exists() else Provenance(data=data, sessions=[])
        for before, now, places in (
            (known.data.digest, data.digest, "data.root or data.path"),
            (known.data.extra_digest, data.extra_digest, "data.extra"),
        ):
            if before != now:
                raise RobustCliError(
                    f"{self.folder.path}: the data changed: this run began with images of digest "
                    f"{before[:12]}, {places} now gives {now[:12]}"
                )
        self._write_sessions(known, [*known.sessions, this_session(device)])

    def note(self, **facts: Any) -> None:
        """Add facts to the record of this session."""
        known = read_provenance(self.folder.provenance)
        *earlier, session = known.sessions
        self._write_sessions(known, [*earlier, session.model_copy(update=facts)])

    def _write_sessions(self, known: Provenance, sessions: list[Session]) -> None:
        write_json(self.folder.provenance, known.model_copy(update={"sessions": sessions}).to_json())

    def log(self, record: Record) -> None:
        """Append one line to train.jsonl."""
        append(self.folder.log, json.dumps(record.to_json()))

    def finish(self, results: RunResults) -> None:
        """Write results.json; the run is never changed again."""
        assert not self.folder.is_finished
        write_results(self.folder.results, results)


@contextmanager
def locked(folder: Path, name: str = LOCK) -> Iterator[None]:
    """Lock a folder, creating it, inside the context; see `lock_folder`."""
    lock = lock_folder(folder, name)
    try:
        yield
    finally:
        lock.release()


def lock_folder(folder: Path, name: str = LOCK) -> "FileLock":
    """Lock a folder, creating it, until the lock is released or this process ends.

    Args:
        name: file name of the lock; locks of other names lock other parts of the folder.

    Raises:
        InUseError: another process has locked it.
        RobustCliError: its file system has no locks.
    """
    # Imported here, because commands that only read runs need no locks.
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / name)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if name != LOCK:
                raise
            # Longer than `is_in_use` takes in another process.
            Event().wait(0.1)
            lock.acquire(timeout=0)
    except Timeout:
        raise InUseError(f"{folder}: in use by another process") from None
    except NotImplementedError as error:
        raise RobustCliError(f"{folder}: this file system has no locks; choose another folder") from error
    return lock


def is_in_use(folder: Path) -> bool:
    """Return True if a process has locked a folder; False where that is unknown, as on Windows."""
    try:
        import fcntl

        with (folder / LOCK).open("rb") as file:
            # FileLock has an exclusive lock. A shared one fails next to it, and ends with the file.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        return False
    return False


def folder_of(root: Path, spec: ExperimentSpec) -> RunFolder:
    """Folder of the run of this spec and seed."""
    return RunFolder(root / spec.name / f"{spec.digest}-s{spec.seed}")


def differences(stored: ExperimentSpec, spec: ExperimentSpec) -> dict[str, Any]:
    """Values of a stored spec that differ from those of this spec, by dotted key."""
    theirs, ours = _flat(stored.to_plain()), _flat(spec.to_plain())
    return {key: value for key, value in theirs.items() if ours.get(key) != value}


def _flat(value: Any, where: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {where: value}
    return {k: v for key, part in value.items() for k, v in _flat(part, f"{where}.{key}" if where else key).items()}


def check_same(folder: RunFolder, spec: ExperimentSpec, *, resume: bool) -> None:
    """Check that a folder holds the run of this spec and may be entered.

    Raises:
        RobustCliError: it contains another run, or an unfinished one and `resume` is false.
    """
    stored = ExperimentSpec.read_stored(folder.spec)
    if stored.seed != spec.seed:
        raise RobustCliError(
            f"{folder.spec}: holds seed {stored.seed}, this run has seed {spec.seed}: the file was changed"
        )
    if stored.digest != spec.digest:
        raise RobustCliError(
            f"{folder.spec}: holds a spec of digest {stored.digest}, this one has {spec.digest}: "
            "the file was changed or written by another version; use another --runs folder"
        )
    # A run that was refused before its first checkpoint has nothing to lose.
    if not resume and not folder.is_finished and folder.last.exists():
        raise RobustCliError(
            f"{folder.path}: this run exists and is {folder.status()}; continue it with --resume, "
            "or choose another seed or --runs folder"
        )
    # A spec that leaves the precision to the machine has the same digest as one with fp32.
    begun = None if spec.train.precision == "auto" else folder.begun_precision()
    if begun not in (None, spec.train.precision):
        raise RobustCliError(
            f"{folder.path}: this run started in {begun}, chosen by train.precision: auto, but this spec has "
            f"train.precision: {spec.train.precision}; remove it, or choose another --runs folder"
        )
