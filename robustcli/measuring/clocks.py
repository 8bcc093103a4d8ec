"""Seconds on the wall, and of the processor: on a machine that others use too, the second is the steadier one."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Seconds:
    """How long something takes.

    Args:
        wall: as a clock on the wall tells.
        cpu: of the processor in this process, all threads together.
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
    """Both clocks, after waiting for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Seconds(time.perf_counter(), time.process_time())


def median(values: Sequence[Seconds]) -> Seconds:
    """The median of each clock."""
    return Seconds(statistics.median(value.wall for value in values), statistics.median(value.cpu for value in values))
