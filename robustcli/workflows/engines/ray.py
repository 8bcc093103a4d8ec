"""Run tasks on a Ray cluster: a running one, or one on this machine that stops with the command."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from typing import Any

from robustcli.errors import Interrupted, RobustCliError, in_one_line
from robustcli.workflows.engines import Answer, Command, Task, never, perform

# Number of retries of a task whose process was lost; every retry resumes.
_RETRIES = 20
# Seconds between two checks for answers.
_PATIENCE = 0.2


class RayEngine:
    """Tasks as Ray tasks that request GPUs and cores."""

    def run(self, tasks: Sequence[Task], is_enough: Callable[[Answer], bool] = never) -> Iterator[tuple[Task, Answer]]:
        """Run all tasks and yield each with its answer as it finishes, until there is enough."""
        if not tasks:
            return
        # Ray prints messages about lost processes to standard output, which is for results.
        with redirect_stdout(sys.stderr):
            yield from _run(tasks, is_enough)


def _run(tasks: Sequence[Task], is_enough: Callable[[Answer], bool]) -> Iterator[tuple[Task, Answer]]:
    take = signal.getsignal(signal.SIGTERM)
    ray = _connected()
    # Ray's own handler of SIGTERM aborts the process.
    signal.signal(signal.SIGTERM, take)
    try:
        _require(tasks, ray.cluster_resources())
        running = {}
        for task in tasks:
            call = ray.remote(num_cpus=task.cpus, num_gpus=task.gpus, max_retries=_RETRIES)(_perform)
            running[call.options(name=task.name).remote(task, Command.running())] = task
        while running:
            done, _ = ray.wait(list(running), num_returns=1, timeout=0)
            if not done:
                # Handled here, because Ray turns exceptions of signal handlers into internal errors.
                time.sleep(_PATIENCE)
                continue
            try:
                answer = ray.get(done[0])
            except ray.exceptions.RayError as error:
                answer = Answer(error=in_one_line(error))
            yield running.pop(done[0]), answer
            if is_enough(answer):
                # The remaining tasks end with the connection.
                return
    finally:
        ray.shutdown()


def _perform(task: Task, command: Command) -> Answer:
    try:
        return perform(task, command)
    except Interrupted:
        # This machine is shutting down. Ray treats the exit as a loss and runs the task on another machine.
        os._exit(3)


def _connected() -> Any:
    """Return the module, connected to a cluster."""
    try:
        import ray
    except ImportError as error:
        raise RobustCliError("--engine ray: the package is not installed; run pip install ray") from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    settings = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    try:
        ray.init(address="auto", log_to_driver=False, logging_level="error")
    except ConnectionError as error:
        if address := os.environ.get("RAY_ADDRESS"):
            raise RobustCliError(
                f"RAY_ADDRESS={address}: no Ray cluster answers; unset it to start one on this machine"
            ) from error
        ray.init(address="local", **settings)
    return ray


def _require(tasks: Sequence[Task], resources: dict[str, float]) -> None:
    """Raise for tasks that the cluster can never run."""
    for name, key in (("gpus", "GPU"), ("cpus", "CPU")):
        most = max(getattr(task, name) for task in tasks)
        if most > resources.get(key, 0):
            raise RobustCliError(
                f"--engine ray: a task needs {most} {key}s; the cluster has {resources.get(key, 0):g}; "
                f"pass --{name} {int(resources.get(key, 0))}"
            )
