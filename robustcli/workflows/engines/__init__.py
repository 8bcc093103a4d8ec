"""Engines run tasks in other processes: on a Ray cluster, or as jobs of SLURM.

A task is a function call. Its state is in files on storage that all machines share, so an engine can run it again after
its process was lost, and only a short answer is sent back.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from robustcli.errors import RobustCliError, disk_message

# Default number of cores per GPU of a task.
_CORES_PER_GPU = 4


@dataclass(frozen=True, kw_only=True)
class Task:
    """A call that an engine makes in another process.

    Args:
        name: name of the job.
        folder: folder for the files of the job, such as its log.
        work: function at the top level of a module; it can be called again after its process was lost.
        arguments: its arguments; they can be pickled.
        gpus, cpus: GPUs and processor cores that it needs.
    """

    name: str
    folder: Path
    work: Callable[..., Any]
    arguments: tuple[Any, ...]
    gpus: int = 0
    cpus: int = 1


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The outcome of a task.

    Args:
        value: return value of the function.
        error: reason why there is no value, or None.
    """

    value: Any = None
    error: str | None = None


def never(answer: Answer) -> bool:
    """Return False: every answer is needed."""
    return False


class Engine(Protocol):
    """Runs tasks in other processes."""

    def run(self, tasks: Sequence[Task], is_enough: Callable[[Answer], bool] = never) -> Iterator[tuple[Task, Answer]]:
        """Run all tasks and yield each with its answer as it finishes.

        Args:
            is_enough: returns whether an answer makes the other tasks unnecessary, so that they are canceled.

        Raises:
            RobustCliError: the engine is not available, or cannot provide what a task needs.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Needs:
    """GPUs and cores that the user requested; None means the default.

    Args:
        gpus: GPUs of a task. Default: none for a task on the CPU, otherwise one.
        cpus: processor cores of a task. Default: four for each GPU, or one.
    """

    gpus: int | None = None
    cpus: int | None = None

    def on(self, device: str) -> dict[str, int]:
        """GPUs and cores of a task on a device, by its name in a spec."""
        gpus = self.gpus if self.gpus is not None else int(device != "cpu")
        return {"gpus": gpus, "cpus": self.cpus or max(1, _CORES_PER_GPU * gpus)}

    def text(self, device: str) -> str:
        """The same as text."""
        found = self.on(device)
        return f"GPUs: {found['gpus']}, cores: {found['cpus']}"


@dataclass(frozen=True)
class Command:
    """The command that creates tasks.

    Args:
        folder: its working directory, to which paths are relative.
        words: its arguments, for provenance.
    """

    folder: Path
    words: tuple[str, ...]

    @classmethod
    def running(cls) -> "Command":
        """Return the command that this process runs."""
        return cls(Path.cwd(), tuple(sys.argv))


def perform(task: Task, command: Command) -> Answer:
    """Run a task of a command in this process."""
    os.chdir(command.folder)
    sys.argv = [*command.words]
    if "OMP_NUM_THREADS" not in os.environ:
        import torch  # Not above: commands that only write tasks should not wait for it.

        torch.set_num_threads(task.cpus)
    try:
        return Answer(value=task.work(*task.arguments))
    except RobustCliError as error:
        return Answer(error=str(error))
    except OSError as error:
        return Answer(error=disk_message(error))
