"""Updates of a spec, to be measured."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from robustcli.data.splits import Data
from robustcli.defenses import Defense
from robustcli.errors import Interrupted
from robustcli.evaluation.watcher import Watcher
from robustcli.measuring.timing import wall
from robustcli.optimization.progress import Progress
from robustcli.registry.registry import instantiate
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.records import CheckRecord, Record
from robustcli.store.runs import RunFolder
from robustcli.training.check import Check
from robustcli.training.loop import Loop, fit
from robustcli.training.setup import assemble

# Updates before the measured ones, which allocate memory, choose kernels and compile programs.
WARM_UP = 3
# Small, because untrained weights would diverge with the learning rate of the middle of training.
_LR_SHARE = 1e-6


@dataclass
class _Marks(Watcher):
    """Watcher of a training that records the time of each update, and stops it after enough of them."""

    clock: Callable[[], float]
    wanted: int
    intervals: list[float] = field(default_factory=list)
    last: float | None = None

    def begin(self, updates: int, done: int) -> None:
        self.last = self.clock()

    def step(self, images: int) -> None:
        time = self.clock()
        if self.last is not None:
            self.intervals.append(time - self.last)
        self.last = time

    def epoch(self, record: Record) -> None:
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

    def epoch_end(self) -> None:
        """Average and store the weights as after the last epoch, without the check."""
        length, epochs = self.loop.steps_per_epoch, self.spec.train.epochs
        average = self.defense.averaging.start(self.training.network)
        average.update(self.training.network, Progress(length * epochs - 1, length, epochs))
        images = partial(self.loop.data.clean_batches, self.spec.train.batch_size)
        self.saver.save(average.averaged(self.training.network, images), True, CheckRecord())

    def check(self) -> Check:
        """Return the check after every epoch."""
        return Check(self.loop.settings, self.defense, self.loop.data, self.loop.threat)


def trial_folder() -> "TemporaryDirectory[str]":
    """Return a temporary folder for the files of a trial."""
    return TemporaryDirectory(prefix="robust-plan-")


def _unchecked(_: nn.Module) -> CheckRecord:
    return CheckRecord(clean=0.0, robust=0.0, fgsm=0.0)


def _unsaved(*_: Any) -> None:
    pass
