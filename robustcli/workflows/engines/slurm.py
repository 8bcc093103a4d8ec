"""Run tasks as SLURM jobs, using submitit.

A job gets SIGUSR2 before its time limit, and SIGTERM on preemption. In both cases the task stops at the next point from
which it can resume. The job then requeues itself (SIGUSR2), or SLURM does unless it was canceled (SIGTERM).
"""

import os
import pickle
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from robustcli.errors import Interrupted, RobustCliError
from robustcli.runtime.signals import stop_requests
from robustcli.store.jobs import JobRecord, read_job, write_job
from robustcli.workflows.engines import Answer, Command, Task, never, perform
from robustcli.workflows.slurm import NOTICE, Queued, WatchedQueue, cancel_jobs, queue, time_limit

# Seconds between two checks for answers, and between two checks of the queue.
_PATIENCE, _QUEUE_PATIENCE = 2.0, 10.0
# Seconds to wait for the answer of a job that has left the queue, because storage may be slow.
_GRACE = 60.0


@dataclass(frozen=True, kw_only=True)
class SlurmEngine:
    """Tasks as SLURM jobs.

    Args:
        partition: partition of the jobs; None is the default of the cluster.
        time: time limit of a job as sbatch takes it.
    """

    partition: str | None
    time: str

    def run(self, tasks: Sequence[Task], is_enough: Callable[[Answer], bool] = never) -> Iterator[tuple[Task, Answer]]:
        """Submit all tasks that are not in the queue yet, and yield each with its answer, until there is enough."""
        submitit = _submitit()
        watched, in_queue = WatchedQueue(), queue()
        jobs = [(task, self._submitted(submitit, task, in_queue)) for task in tasks]
        gone: dict[str, float] = {}
        looked = time.monotonic()
        while jobs:
            waiting = []
            for task, job in jobs:
                if job.paths.result_pickle.exists():
                    answer = _answer(job)
                    yield task, answer
                    if is_enough(answer):
                        cancel_jobs([other.job_id for _, other in jobs if other is not job])
                        return
                elif time.monotonic() - gone.get(job.job_id, time.monotonic()) > _GRACE:
                    yield task, Answer(error=f"job {job.job_id} ended without an answer; see {job.paths.stdout}")
                else:
                    waiting.append((task, job))
            if len(waiting) == len(jobs):
                time.sleep(_PATIENCE)
            jobs = waiting
            if jobs and time.monotonic() - looked > _QUEUE_PATIENCE:
                found, looked = watched.read(), time.monotonic()
                if found is not None:
                    gone = {job.job_id: gone.get(job.job_id, looked) for _, job in jobs if job.job_id not in found}

    def _submitted(self, submitit: Any, task: Task, in_queue: Mapping[str, Queued]) -> Any:
        """Return the job of a task: the one of an earlier command if it is still in the queue, or a new one."""
        known = read_job(task.folder)
        if known is not None and known.id in in_queue:
            return submitit.SlurmJob(folder=task.folder, job_id=known.id)
        # Without srun and with exec, the task receives the signals for the batch shell exactly once.
        executor = submitit.SlurmExecutor(
            folder=task.folder, max_num_timeout=sys.maxsize, python=f"exec {shlex.quote(sys.executable)}"
        )
        settings = {
            "job_name": task.name,
            "time": time_limit(self.time),
            "cpus_per_task": task.cpus,
            "stderr_to_stdout": True,
            "use_srun": False,
            "additional_parameters": {"requeue": True, "signal": f"B:USR2@{NOTICE}"},
        }
        if self.partition is not None:
            settings["partition"] = self.partition
        if task.gpus:
            settings["gpus_per_node"] = task.gpus
        executor.update_parameters(**settings)
        try:
            job = executor.submit(_Job(task, Command.running()))
        except submitit.core.utils.FailedJobError as error:
            hint = "; --gpus 0 asks for no GPU" if task.gpus else ""
            raise RobustCliError(f"{task.name}: {str(error).strip()}{hint}") from error
        write_job(task.folder, JobRecord(id=job.job_id, name=task.name, log=job.paths.stdout.name))
        return job


@dataclass(frozen=True)
class _Job:
    """A job: task and command."""

    task: Task
    command: Command

    def __call__(self) -> Answer:
        requeue: Any = signal.getsignal(signal.SIGUSR2)
        is_over = False

        def stop(number: int, frame: FrameType | None) -> None:
            nonlocal is_over
            is_over = True
            os.kill(os.getpid(), signal.SIGTERM)

        signal.signal(signal.SIGUSR2, stop)
        try:
            with stop_requests():
                return perform(self.task, self.command)
        except Interrupted as stopped:
            print(f"{stopped}", file=sys.stderr, flush=True)
            if is_over:
                requeue(signal.SIGUSR2, None)
            sys.exit(3)

    def checkpoint(self) -> Any:
        """Return the job to run after requeueing; called by submitit."""
        return _submitit().helpers.DelayedSubmission(self)


def _answer(job: Any) -> Answer:
    outcome, value = pickle.loads(job.paths.result_pickle.read_bytes())
    if outcome != "success":
        return Answer(error=f"job {job.job_id}: {value.strip().splitlines()[-1]}; see {job.paths.stdout}")
    assert isinstance(value, Answer)
    return value


def _submitit() -> Any:
    try:
        import submitit
    except ImportError as error:
        raise RobustCliError("--engine slurm: submitit is not installed; run pip install submitit") from error
    return submitit
