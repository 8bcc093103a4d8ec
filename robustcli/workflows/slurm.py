"""`robust submit`, `status`, `logs`, `cancel`: a run as a SLURM job."""

import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from robustcli.errors import RobustCliError
from robustcli.runtime.signals import STOPPING
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.files import write_text
from robustcli.store.jobs import FOLDER, JobRecord, find_jobs, read_job, write_job
from robustcli.store.runs import Run, RunFolder, folder_of

# Seconds before the time limit at which a job is asked to stop.
NOTICE = 120
# Minimum time limit of a job in minutes. SLURM sends the signal up to half a minute early, so a job with a limit of two
# or three minutes would be stopped before it has trained, again and again.
LEAST = 5
# Seconds for which the controller of SLURM may be unreachable while jobs are waited for.
_UNREACHABLE = 3600.0
# Seconds between two reads of a growing log, and number of reads between two checks of the queue.
_PATIENCE, _LOOKS = 1.0, 10
_BLOCK = 1 << 16
_SCRIPT = Path(__file__).parent / "templates" / "job.sh.j2"


@dataclass(frozen=True, kw_only=True)
class Queued:
    """A job in the queue of SLURM.

    Args:
        state: PENDING, RUNNING, COMPLETING and so on.
        elapsed: running time, as printed by SLURM.
        place: node of a running job, or reason why it waits.
    """

    state: str
    elapsed: str
    place: str


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Resources of a job.

    Args:
        partition: partition; None is the default of the cluster.
        time: time limit, as sbatch takes it.
        nodes: number of nodes.
        gpus, cpus: GPUs and processor cores of every node.
    """

    partition: str | None
    time: str
    nodes: int = 1
    gpus: int = 0
    cpus: int = 1


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """A run with its job.

    Args:
        run: folder of the run.
        status: status of the run, such as "unfinished, 12 epochs".
        queued: its entry in the queue; None if the job has ended.
    """

    run: Path
    job: JobRecord
    status: str
    queued: Queued | None


def queue() -> dict[str, Queued]:
    """Return the user's jobs in the queue of SLURM, by number."""
    lines = _slurm("squeue", "--me", "--noheader", "--format=%i|%T|%M|%R").splitlines()
    fields = (line.split("|", 3) for line in lines)
    return {number: Queued(state=state, elapsed=elapsed, place=place) for number, state, elapsed, place in fields}


class WatchedQueue:
    """The queue as it is read again and again, for hours; a busy controller of SLURM sometimes does not answer."""

    def __init__(self) -> None:
        self._answered = time.monotonic()

    def read(self) -> dict[str, Queued] | None:
        """Return the queue; None if SLURM does not answer now.

        Raises:
            RobustCliError: it has not answered for an hour.
        """
        try:
            found = queue()
        except RobustCliError:
            if time.monotonic() - self._answered > _UNREACHABLE:
                raise
            return None
        self._answered = time.monotonic()
        return found


def minutes(text: str) -> int:
    """Return a time limit as sbatch takes it, such as 90, 12:00:00 or 1-12:00:00, in minutes, rounded up."""
    match = re.fullmatch(r"(?:(\d+)-(\d+)(?::(\d+)(?::(\d+))?)?|(\d+)(?::(\d+))?|(\d+):(\d+):(\d+))", text)
    if match is None or not re.search("[1-9]", text):
        raise RobustCliError(
            f"--time: '{text}' is not a time limit; write minutes, HOURS:MINUTES:SECONDS or "
            "DAYS-HOURS:MINUTES:SECONDS, such as 12:00:00"
        )
    days, day_hours, day_minutes, day_seconds, alone, seconds, hours, more, rest = (
        int(part or 0) for part in match.groups()
    )
    total = 60 * (60 * (24 * days + day_hours + hours) + day_minutes + alone + more) + day_seconds + seconds + rest
    return -(-total // 60)


def time_limit(text: str) -> int:
    """Return the time limit of a job in minutes.

    Raises:
        RobustCliError: it is not a time limit, or too short for a job that is asked to stop before it.
    """
    found = minutes(text)
    if found < LEAST:
        raise RobustCliError(
            f"--time: '{text}': a job is asked to stop {NOTICE // 60} minutes before its limit, to save a checkpoint; "
            f"expected at least {LEAST} minutes"
        )
    return found


def script(spec: ExperimentSpec, runs: Path, resources: Resources) -> str:
    """Return the batch script of a run."""
    from jinja2 import Environment, StrictUndefined

    time_limit(resources.time)
    folder = folder_of(runs, spec)
    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined
    )
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    return environment.from_string(_SCRIPT.read_text(encoding="utf-8")).render(
        folder=folder,
        name=spec.name,
        resources=resources,
        here=Path.cwd(),
        log=f"{folder.path / FOLDER}/%j.log",
        notice=NOTICE,
        stopping=STOPPING,
        processes=max(1, resources.gpus),
        python=shlex.quote(sys.executable),
        train=f"robustcli train {shlex.quote(str(folder.spec))} --resume --runs {shlex.quote(str(runs))}",
    )


def submit(spec: ExperimentSpec, runs: Path, resources: Resources) -> tuple[Path, JobRecord]:
    """Write the batch script into the folder of the run and submit it.

    Returns:
        The folder of the run, and its job.

    Raises:
        RobustCliError: the run is finished, its job is in the queue, or sbatch refuses the job.
    """
    text = script(spec, runs, resources)
    folder = folder_of(runs, spec)
    if folder.is_finished:
        raise RobustCliError(f"{folder.path}: this run is {folder.status()}; robust results prints it")
    known = read_job(folder.path / FOLDER)
    if known is not None and (queued := queue().get(known.id)):
        raise RobustCliError(f"{folder.path}: job {known.id} is {queued.state}; robust cancel {folder.path} ends it")
    # Writes the spec, and raises if another process uses the folder.
    run = Run.open(runs, spec, resume=True)
    path = folder.path / FOLDER / "job.sh"
    try:
        write_text(path, text)
        # The job may begin at once.
        run.close()
        number = _slurm("sbatch", "--parsable", str(path)).strip().split(";")[0]
    except BaseException:
        if known is None:
            shutil.rmtree(path.parent, ignore_errors=True)
        run.abandon()
        raise
    record = JobRecord(id=number, name=spec.name, log=f"{number}.log")
    write_job(folder.path / FOLDER, record)
    return folder.path, record


def statuses(runs: Path) -> list[JobStatus]:
    """Return the runs below a folder for which a job was submitted."""
    in_queue: Mapping[str, Queued] | None = None
    found = []
    for path in find_jobs(runs):
        job = read_job(path / FOLDER)
        assert job is not None
        in_queue = queue() if in_queue is None else in_queue
        found.append(JobStatus(run=path, job=job, status=RunFolder(path).status(), queued=in_queue.get(job.id)))
    return found


def log_of(run: Path, *, follow: bool) -> Iterator[str]:
    """Yield the log of a run's job.

    Args:
        follow: yield also what is written from now on, until the job leaves the queue.
    """
    job = job_of(run)
    path = run / FOLDER / job.log
    if not follow and not path.exists():
        raise RobustCliError(f"{path}: there is no log yet; robust status shows the state of job {job.id}")
    position, looks, is_over = 0, 0, not follow
    watched = WatchedQueue()
    while True:
        if path.exists():
            with path.open("rb") as file:
                file.seek(position)
                while block := file.read(_BLOCK):
                    position += len(block)
                    yield block.decode(errors="replace")
        if is_over:
            return
        time.sleep(_PATIENCE)
        looks += 1
        # Read the log once more after the job has left the queue.
        if looks % _LOOKS == 0 and (in_queue := watched.read()) is not None:
            is_over = job.id not in in_queue


def cancel(run: Path) -> JobRecord:
    """Cancel the job of a run; its training saves a checkpoint and ends.

    Raises:
        RobustCliError: no job of the run is in the queue.
    """
    job = job_of(run)
    if job.id not in queue():
        raise RobustCliError(f"{run}: job {job.id} is not in the queue; this run is {RunFolder(run).status()}")
    cancel_jobs([job.id])
    return job


def cancel_jobs(numbers: Sequence[str]) -> None:
    """Cancel jobs; jobs that have ended are skipped."""
    if numbers:
        _slurm("scancel", "--quiet", *numbers)


def job_of(run: Path) -> JobRecord:
    """Return the job of a run.

    Raises:
        RobustCliError: no job was submitted for it.
    """
    job = read_job(run / FOLDER)
    if job is None:
        raise RobustCliError(f"{run}: no job was submitted for this run; robust status lists those with a job")
    return job


def _slurm(*words: str) -> str:
    """Return the output of a command of SLURM."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise RobustCliError(
            f"{words[0]}: command not found; expected SLURM's commands on this machine; robust train runs without SLURM"
        ) from None
    if done.returncode:
        raise RobustCliError(f"{words[0]}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout
