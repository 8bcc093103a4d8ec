"""A queue of small shards of an evaluation's images, shared by any number of processes.

The queue is a folder. A process locks the shard that it works on; the lock of a killed process is released, so a
single process can finish the evaluation.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from robustcli.errors import InUseError
from robustcli.store.runs import locked

# Largest and smallest number of images per shard, and number of shards in between. They do not depend on the number of
# processes or on batch sizes, so that others can join.
_MOST, _LEAST, _SHARDS = 250, 8, 32
# Seconds between two checks of shards of other processes.
_PATIENCE = 1.0


@dataclass(frozen=True)
class ShardQueue:
    """Shards of the images, numbered from 0.

    Args:
        folder: folder of the queue; it is created.
        count: number of shards; the same for all processes that share a queue.
    """

    folder: Path
    count: int

    @classmethod
    def of(cls, folder: Path, images: int) -> "ShardQueue":
        """Create a queue for a number of images."""
        size = max(_LEAST, min(_MOST, -(-images // _SHARDS)))
        return cls(folder, -(-images // size))

    @property
    def done(self) -> int:
        """Number of shards that are done."""
        return sum(self._done(number).exists() for number in range(self.count))

    def draw(self) -> Iterator[tuple[int, int]]:
        """Yield (i, n) of each shard that this process has to attack; return when all shards are done.

        A shard is done when the next one is requested.
        """
        left = list(range(self.count))
        while left:
            in_use = []
            for number in left:
                done = self._done(number)
                if done.exists():
                    continue
                try:
                    with locked(self.folder, f"{done.stem}.lock"):
                        if not done.exists():
                            yield number, self.count
                            done.touch()
                except InUseError:
                    in_use.append(number)
            if len(in_use) == len(left):
                time.sleep(_PATIENCE)
            left = in_use

    def _done(self, number: int) -> Path:
        return self.folder / f"{number}-of-{self.count}.done"
