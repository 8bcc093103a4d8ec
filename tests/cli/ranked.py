"""Runs `robust` in several processes as torchrun does; any of them can be killed."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import forked
from killing import Plan, _work


def _ranked_work(variables: Mapping[str, str], *rest: Any) -> None:
    os.environ.update(variables)
    _work(*rest)


class RankedSessions:
    """Runs `robust` in one folder by several processes, session after session.

    Args:
        folder: where the processes work; logs lie in it too.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def run(self, *words: str, count: int = 2, plans: Mapping[int, Plan] = {}, restarts: int = 0) -> list[int]:
        """Exit codes of the processes; minus the number of the signal that killed one.

        Args:
            plans: when processes are killed, by rank.
            restarts: how often torchrun has restarted them.
        """
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        processes = []
        for rank in range(count):
            variables = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(count),
                "LOCAL_WORLD_SIZE": str(count),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "TORCHELASTIC_RESTART_COUNT": str(restarts),
            }
            tally = self.tally(rank)
            tally.write_text("0", encoding="utf-8")
            arguments = (variables, words, str(self.folder), plans.get(rank, Plan()), str(self.log(rank)), str(tally))
            processes.append(forked.process(_ranked_work, *arguments))
        for process in processes:
            process.join(180)
        codes = [process.exitcode for process in processes]
        for process in processes:
            process.kill()
        said = [self.log(rank).read_text(encoding="utf-8")[-2000:] for rank in range(count)]
        assert None not in codes, f"a process hangs: {codes}\n{said}"
        assert not any("Traceback" in text for text in said), said
        return [code for code in codes if code is not None]

    def log(self, rank: int) -> Path:
        return self.folder / f"session-{rank}.log"

    def tally(self, rank: int) -> Path:
        return self.folder / f"session-{rank}.events"

    def events(self, rank: int) -> int:
        """Number of events of a process of the last session."""
        return int(self.tally(rank).read_text(encoding="utf-8"))
