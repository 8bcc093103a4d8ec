"""Two processes that work together as torchrun's do, for many calls."""

from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import forked
import torch
import torch.distributed as dist

_COUNT = 2
# Seconds for a call, on a machine that is busy with other things.
_PATIENCE = 300


class Pair:
    """Two processes; `run` calls a function in both at once.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self._pipes: list[Connection] = []
        self._processes = []
        self._is_running = True
        processes = forked.processes()
        for rank in range(_COUNT):
            ours, theirs = processes.Pipe()
            process = processes.Process(target=_serve, args=(theirs, rank, str(folder / "group")), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Return the result of each process, in their order."""
        assert self._is_running, "a process failed in an earlier test"
        for pipe in self._pipes:
            pipe.send((function, arguments))
        found = []
        for pipe in self._pipes:
            self._is_running = pipe.poll(_PATIENCE)
            assert self._is_running, "a process hangs"
            found.append(pipe.recv())
        failures = [one for one in found if isinstance(one, AssertionError)]
        if failures:
            self._is_running = False
            raise AssertionError("; ".join(map(str, failures)))
        return found

    def close(self) -> None:
        for process in self._processes:
            process.terminate()
            process.join()


def _serve(pipe: Connection, rank: int, file: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=_COUNT)
    while True:
        function, arguments = pipe.recv()
        try:
            pipe.send(function(*arguments))
        except Exception as error:
            # The other process may wait for this one and sees the connection end.
            pipe.send(AssertionError(f"process {rank}: {type(error).__name__}: {error}"))
            return
