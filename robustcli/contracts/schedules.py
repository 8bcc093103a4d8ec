"""Contract of every schedule."""

import math

import torch
from torch import Tensor

from robustcli.optimization.progress import Progress
from robustcli.optimization.schedules import Schedule

RUNS = ((1, 1), (5, 1), (2, 3), (7, 10), (390, 4))


def stays_between_0_and_1(schedule: Schedule) -> None:
    """Factors are finite and in [0, 1] in every update of short and long runs; the maximum is about 1."""
    for steps_per_epoch, epochs in RUNS:
        for step in range(steps_per_epoch * epochs):
            factor = schedule(Progress(step, steps_per_epoch, epochs))
            assert isinstance(factor, float)
            assert math.isfinite(factor)
            assert -1e-12 <= factor <= 1 + 1e-12, f"{factor} at update {step} of {steps_per_epoch} x {epochs}"


def depends_only_on_progress(schedule: Schedule) -> None:
    progresses = [Progress(step, 7, 10) for step in range(70)]
    forwards = [schedule(progress) for progress in progresses]
    assert [schedule(progress) for progress in reversed(progresses)][::-1] == forwards


def observed_schedule(schedule: Schedule) -> Tensor:
    """Rate and momentum of every update; -1 stands for a momentum that is not changed."""
    progresses = [Progress(step, 7, 10) for step in range(70)]
    momenta = [schedule.momentum_at(progress) for progress in progresses]
    rates = [schedule(progress) for progress in progresses]
    return torch.tensor([*rates, *(-1.0 if momentum is None else momentum for momentum in momenta)])
