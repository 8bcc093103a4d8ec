"""Learning-rate schedules: functions of the training progress. Each returns the factor of the learning rate."""

from abc import abstractmethod
from typing import Protocol

from robustcli.optimization.progress import Progress
from robustcli.registry.registry import Registry

SCHEDULES = Registry("schedules")


@SCHEDULES.protocol
class Schedule(Protocol):
    """Settings of a schedule; members inherit from it."""

    @abstractmethod
    def __call__(self, progress: Progress) -> float:
        """Factor of the learning rate for one update; 1 is the full rate."""
        ...

    def momentum_at(self, progress: Progress) -> float | None:
        """Momentum for one update; None leaves the momentum of the optimizer as it is."""
        return None
