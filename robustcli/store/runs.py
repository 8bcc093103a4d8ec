"""The run store: one folder per run, JSON a person can read, no half-written file, no finished run touched.

``runs/<name>/<digest>-s<seed>/`` holds spec.yaml (resolved), provenance.json, train.jsonl, checkpoints/,
evaluations/ (one file per evaluation that is done) and, when all is done, results.json.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import robustcli
from robustcli import __version__
from robustcli.errors import InUseError, RobustCliError
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.files import read_json, write_json, write_text

SCHEMA = 1
_PACKAGES = ("torch", "torchvision", "pyautoattack", "numpy", "scikit-learn", "pydantic")


@dataclass(frozen=True)
class RunFolder:
    """Where the files of one run lie."""

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
        """What the run of an architecture search has found: a spec that trains it."""
        return self.path / "derived.yaml"

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluations"

    def evaluation(self, key: str) -> Path:
        return self.evaluations / f"{key}.json"

    @property
    def is_finished(self) -> bool:
        return self.results.exists()

    def records(self) -> list[dict[str, Any]]:
        """The lines of train.jsonl; a last line that a kill cut short is left out."""
        if not self.log.exists():
            return []
        lines = self.log.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1]]

    def status(self) -> str:
        """finished, collapsed, rewound, failed, or how far an unfinished run has come."""
        if self.is_finished:
            return str(read_json(self.results)["status"])
        records = self.records()
        if records and "event" in records[-1]:
            return str(records[-1]["event"])
        return f"unfinished, {len(records)} epochs"


class Run:
    """A run that is open for writing, locked against other processes.

    Args:
        folder: its files.
        spec: what it runs.
    """

    def __init__(self, folder: RunFolder, spec: ExperimentSpec, lock: FileLock) -> None:
        self.folder = folder
        self.spec = spec
        self._lock = lock

    @classmethod
    def open(cls, root: Path, spec: ExperimentSpec, *, resume: bool) -> "Run":
        """Lock the folder of this spec and seed; make it if it is new.

        Raises:
            RobustCliError: another process has it; it is unfinished and `resume` was not asked for; or it
                holds another spec than its name says.
        """
        folder = folder_of(root, spec)
        lock = lock_folder(folder.path)
        if folder.spec.exists():
            try:
                _check_same(folder, spec, resume=resume)
            except RobustCliError:
                lock.release()
                raise
        else:
            write_text(folder.spec, spec.to_yaml())
        return cls(folder, spec, lock)

    def close(self) -> None:
        """Let other processes have the folder."""
        self._lock.release()

    def begin(self, device: str, data: Mapping[str, Any]) -> None:
        """Record what runs, on what and with which data, for every session of the run.

        Raises:
            RobustCliError: the data differ from those of an earlier session.
        """
        path = self.folder.provenance
        known: dict[str, Any] = read_json(path) if path.exists() else {"data": dict(data), "sessions": []}
        for key, places in (("digest", "data.root or data.path"), ("extra_digest", "data.extra")):
            before, now = known["data"].get(key, ""), data.get(key, "")
            if before != now:
                raise RobustCliError(
                    f"{self.folder.path}: the data changed: this run began with images of digest "
                    f"{before[:12]}, {places} now gives {now[:12]}"
                )
        write_json(path, {**known, "sessions": [*known["sessions"], provenance(device)]})

    def note(self, **facts: Any) -> None:
        """Add what this session decided or met with to its record."""
        known = read_json(self.folder.provenance)
        *earlier, session = known["sessions"]
        write_json(self.folder.provenance, {**known, "sessions": [*earlier, {**session, **facts}]})

    def keep_records(self, epochs: int) -> None:
        """Drop records at or after an epoch that is about to be run again."""
        kept = [record for record in self.folder.records() if record["epoch"] < epochs and "event" not in record]
        write_text(self.folder.log, "".join(json.dumps(record) + "\n" for record in kept))

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to train.jsonl."""
        with self.folder.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def finish(self, results: Mapping[str, Any]) -> None:
        """Write results.json; from here on the run is never written again."""
        assert not self.folder.is_finished
        write_json(self.folder.results, {"schema": SCHEMA, **results})


def lock_folder(path: Path) -> FileLock:
    """Keep other processes out of a folder, which is made, until the lock is released or this process ends.

    Raises:
        InUseError: another process has it.
        RobustCliError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RobustCliError(f"{path}: cannot be made: {error.strerror}") from error
    lock = FileLock(path / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InUseError(f"{path}: in use by another process") from None
    return lock


def folder_of(root: Path, spec: ExperimentSpec) -> RunFolder:
    """Where the run of this spec and seed lies."""
    return RunFolder(root / spec.name / f"{spec.digest}-s{spec.seed}")


def find_runs(root: Path) -> Iterator[RunFolder]:
    """All runs below a folder, by name."""
    for path in sorted(root.glob("*/*/spec.yaml")):
        yield RunFolder(path.parent)


def _check_same(folder: RunFolder, spec: ExperimentSpec, *, resume: bool) -> None:
    stored = ExperimentSpec.parse(folder.spec.read_text(encoding="utf-8"), str(folder.spec))
    if stored.seed != spec.seed:
        raise RobustCliError(
            f"{folder.spec}: holds seed {stored.seed}, this run has seed {spec.seed}: the file was changed"
        )
    if stored.digest != spec.digest:
        raise RobustCliError(
            f"{folder.spec}: holds a spec of digest {stored.digest}, this one has {spec.digest}: "
            "the file was changed or written by another version; use another --runs folder"
        )
    # Before its images were read there is nothing of a run to lose.
    if not resume and not folder.is_finished and folder.provenance.exists():
        raise RobustCliError(
            f"{folder.path}: this run exists and is {folder.status()}; continue it with --resume, "
            "or choose another seed or --runs folder"
        )


def provenance(device: str) -> dict[str, Any]:
    """Commit, versions, device and command of the running process."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["robust", *sys.argv[1:]],
        "device": device,
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        # Its own version from the code that runs: metadata may be missing or of another copy.
        "versions": {"robustcli": __version__, **{name: version_of(name) for name in _PACKAGES}},
        **_commit(),
    }


def version_of(package: str) -> str | None:
    """The version of an installed package; None where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> dict[str, Any]:
    """Commit of the checkout that this code runs from, and whether the code differs; null in an installed package."""
    here = Path(robustcli.__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return {"commit": None, "dirty": None}
    try:
        commit = _git(here, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(here, "status", "--porcelain", "--", "robustcli"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
