"""Wall-clock and processor time; on a shared machine processor time varies less."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Seconds:
    """Duration.

    Args:
        wall: wall-clock time in seconds.
        cpu: processor time of this process in seconds, all threads together.
    """

    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: "Seconds") -> "Seconds":
        return Seconds(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, other: "Seconds") -> "Seconds":
        return Seconds(self.wall - other.wall, self.cpu - other.cpu)

    def __mul__(self, times: float) -> "Seconds":
        return Seconds(times * self.wall, times * self.cpu)


def now(device: torch.device) -> Seconds:
    """Return both clocks after waiting for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Seconds(time.perf_counter(), time.process_time())


def median(values: Sequence[Seconds]) -> Seconds:
    """Return the median of each clock."""
    return Seconds(statistics.median(value.wall for value in values), statistics.median(value.cpu for value in values))
