"""Measure updates of a spec and the end of an epoch."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.attacks.active_set import no_early_exit
from robustcli.data import Data
from robustcli.defenses import Defense
from robustcli.errors import Interrupted
from robustcli.measuring.counters import peak_bytes
from robustcli.measuring.timing import wall
from robustcli.optimization.averaging import RunningAverage
from robustcli.optimization.progress import Progress
from robustcli.registry.registry import instantiate
from robustcli.specs.settings import TrainSettings
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.runs import RunFolder
from robustcli.training.check import Check
from robustcli.training.loop import Loop, fit
from robustcli.training.setup import assemble

# Updates before the measured ones, which allocate memory, choose kernels and compile programs.
WARM_UP = 3
# Small, because untrained weights would diverge with the learning rate of the middle of training.
_LR_SHARE = 1e-6
# Batches from which the cost of all training images is extrapolated.
_SAMPLED = 5


@dataclass
class _Marks:
    """Watcher of a training that records the time of each update, and stops it after enough of them."""

    clock: Callable[[], float]
    wanted: int
    intervals: list[float] = field(default_factory=list)
    last: float | None = None

    def settings(self, text: str) -> None:
        pass

    def begin(self, updates: int, done: int) -> None:
        self.last = self.clock()

    def step(self, images: int) -> None:
        time = self.clock()
        if self.last is not None:
            self.intervals.append(time - self.last)
        self.last = time

    def epoch(self, record: dict[str, Any]) -> None:
        # The time between two epochs is not a part of an update.
        self.last = self.clock()

    def is_enough(self) -> bool:
        return len(self.intervals) >= self.wanted


class Trial:
    """Updates from the middle of a training, without checks and files.

    Args:
        spec: spec of the training.
        data: images of the spec.
        device: device of the training.
        folder: folder for checkpoints.
        clock: clock of the updates in seconds; None is the wall clock.
    """

    def __init__(
        self,
        spec: ExperimentSpec,
        data: Data,
        device: torch.device,
        folder: Path,
        clock: Callable[[], float] | None = None,
    ) -> None:
        settings = replace(spec.train, lr=spec.train.lr * _LR_SHARE, start_from=None)
        self.spec = replace(spec, train=settings)
        self.device = device
        self.defense: Defense = instantiate(spec.defense)
        self.marks = _Marks(clock or (lambda: wall(device)), 0)
        self.training, loop, self.saver = assemble(
            self.spec,
            self.defense,
            data,
            device,
            RunFolder(folder),
            log=lambda _: None,
            note=lambda _: None,
            stop_requested=self.marks.is_enough,
            watcher=self.marks,
        )
        self.loop: Loop = replace(loop, check=_unchecked, save=_unsaved)

    @property
    def updates(self) -> int:
        """Number of updates of the whole training."""
        return self.loop.steps_per_epoch * self.spec.train.epochs

    def run(self, count: int) -> list[float]:
        """Run updates, at most as many as the training has, and return the seconds of each."""
        count = min(count, self.updates)
        # Start at the beginning of an epoch, so that no other epoch starts in between.
        middle = self.updates // 2 // self.loop.steps_per_epoch * self.loop.steps_per_epoch
        self.training.updates = max(0, min(middle, self.updates - count))
        self.training.best_robust, self.training.collapsed_at, self.training.is_over = 0.0, None, False
        self.marks.wanted, self.marks.intervals = count, []
        with suppress(Interrupted):
            fit(self.training, self.loop)
        return self.marks.intervals

    def sample(self, repeats: int) -> float:
        """Return the mean seconds of some updates."""
        return mean(self.run(repeats))

    def peak(self) -> int:
        """Return the peak memory of an update in bytes, besides what is kept between updates."""
        # Free old gradients, so that the new ones count.
        self.training.network.zero_grad(set_to_none=True)
        return peak_bytes(lambda: self.run(1), self.device)

    def epoch_end(self) -> float:
        """Return the mean seconds of averaging and storing the weights after an epoch, without the check."""
        average, share = self.average_of_the_end()
        start = wall(self.device)
        batches = _Batches(self.loop.data, self.spec.train)
        evaluated = average.averaged(self.training.network, batches)
        averaged = (wall(self.device) - start) * batches.scale * share
        start = wall(self.device)
        self.saver.save(evaluated, True, {})
        return averaged + wall(self.device) - start

    def average_of_the_end(self) -> tuple[RunningAverage, float]:
        """Return an average of one network, and the share of epochs in which an average exists.

        In the epochs before, the trained network itself is evaluated, which takes no time.
        """
        average, network = self.defense.averaging.start(self.training.network), self.training.network
        length, epochs = self.loop.steps_per_epoch, self.spec.train.epochs
        for epoch in range(epochs):
            average.update(network, Progress((epoch + 1) * length - 1, length, epochs))
            if average.averaged(network, _no_images) is not network:
                return average, 1 - epoch / epochs
        return average, 0.0

    def check(self) -> Check:
        """Return the check after every epoch."""
        return Check(self.loop.settings, self.defense, self.loop.data, self.loop.threat)


@dataclass
class _Batches:
    """Some batches of training images, for averages that read all of them."""

    data: Data
    settings: TrainSettings
    scale: float = 1.0

    def __call__(self) -> Iterator[Tensor]:
        total = -(-self.data.sizes["train"] // self.settings.batch_size)
        self.scale = max(1.0, total / _SAMPLED)
        return islice(self.data.clean_batches(self.settings.batch_size), _SAMPLED)


@dataclass(frozen=True)
class Updates:
    """Measured updates.

    Args:
        seconds: seconds of each update.
        epoch_end: seconds of the end of an epoch, without the check.
        peak: peak memory of an update in bytes.
    """

    seconds: list[float]
    epoch_end: float
    peak: int


def measure_updates(trial: Trial, count: int) -> Updates:
    """Measure some updates after a warm-up, and the end of an epoch."""
    with no_early_exit():
        trial.run(WARM_UP)
        seconds = trial.run(count)
    trial.epoch_end()
    return Updates(seconds, trial.epoch_end(), trial.peak())


def trial_folder() -> "TemporaryDirectory[str]":
    """Return a temporary folder for the files of a trial."""
    return TemporaryDirectory(prefix="robust-plan-")


def _no_images() -> Iterator[Tensor]:
    return iter(())


def _unchecked(_: nn.Module) -> dict[str, Any]:
    return {"clean": 0.0, "robust": 0.0, "fgsm": 0.0}


def _unsaved(*_: Any) -> None:
    pass
