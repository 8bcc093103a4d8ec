"""The record of a SLURM job, in the folder of its files: `job` in the folder of a run."""

from collections.abc import Iterator
from pathlib import Path

from robustcli.store.files import own_mark, read_json, write_json
from robustcli.store.models import Stored, parsed
from robustcli.store.search import run_folders

FOLDER = "job"
_RECORD = "job.json"


class JobRecord(Stored):
    """The last job that was submitted.

    Args:
        id: number of the job.
        name: name in the queue.
        log: file name of its output, next to this record.
    """

    id: str
    name: str
    log: str


def write_job(folder: Path, record: JobRecord) -> None:
    """Write the record of a job into the folder of its files."""
    write_json(folder / _RECORD, record.to_json(), mark=own_mark())


def read_job(folder: Path) -> JobRecord | None:
    """Read the record in the folder of a job's files; None if nothing was submitted.

    Raises:
        RobustCliError: the record is damaged.
    """
    path = folder / _RECORD
    return parsed(JobRecord, read_json(path), path) if path.exists() else None


def find_jobs(root: Path) -> Iterator[Path]:
    """Folders of the runs below a folder for which a job was submitted, sorted by name."""
    for path in run_folders(root) if root.is_dir() else ():
        if (path / FOLDER / _RECORD).is_file():
            yield path
