"""Learning-rate schedules: functions of where training stands. Each returns the factor that lr is times."""

from typing import Protocol

from robustcli.optimization.clock import Clock
from robustcli.registry.registry import Registry

SCHEDULES = Registry("schedules")


class Schedule(Protocol):
    """Settings of a schedule."""

    def __call__(self, clock: Clock) -> float:
        """Factor of the learning rate for the update that `clock` counts; 1 is the full rate."""
        ...
