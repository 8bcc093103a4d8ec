"""What the updates of a spec, and the end of an epoch, take: some of them are made."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.attacks.active_set import no_early_exit
from robustcli.data import Data
from robustcli.defenses import Defense
from robustcli.errors import Interrupted
from robustcli.measuring.clocks import Seconds, median, now
from robustcli.measuring.untimed import peak_bytes
from robustcli.optimization.averaging import RunningAverage
from robustcli.optimization.progress import Progress
from robustcli.registry.registry import instantiate
from robustcli.specs.settings import TrainSettings
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.runs import RunFolder
from robustcli.training.check import Check
from robustcli.training.loop import Loop, fit
from robustcli.training.setup import assemble

# Updates before those that are measured: memory is fetched, kernels are chosen, programs are compiled.
_WARM_UP = 3
# Small, because weights that were never trained meet the learning rate of the middle of training.
_LR_SHARE = 1e-6
# Batches from which the cost of going through all training images is told.
_SAMPLED = 5


@dataclass
class _Marks:
    """The watcher and the brake of a training: notes when each update was done, and stops after enough of them."""

    device: torch.device
    wanted: int
    intervals: list[Seconds] = field(default_factory=list)
    last: Seconds | None = None

    def begin(self, updates: int, done: int) -> None:
        self.last = now(self.device)

    def step(self, images: int) -> None:
        time = now(self.device)
        if self.last is not None:
            self.intervals.append(time - self.last)
        self.last = time

    def epoch(self, record: dict[str, Any]) -> None:
        # What lies between two epochs belongs to no update.
        self.last = now(self.device)

    def is_enough(self) -> bool:
        return len(self.intervals) >= self.wanted


class Trial:
    """A training that never ends: updates from the middle of what the spec asks for, checks and files left out.

    Args:
        spec: what would be trained.
        data: its images.
        device: where.
        folder: for checkpoints.
    """

    def __init__(self, spec: ExperimentSpec, data: Data, device: torch.device, folder: Path) -> None:
        settings = replace(spec.train, lr=spec.train.lr * _LR_SHARE, start_from=None)
        self.spec = replace(spec, train=settings)
        self.device = device
        self.defense: Defense = instantiate(spec.defense)
        self.marks = _Marks(device, 0)
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
        """In the whole training."""
        return self.loop.steps_per_epoch * self.spec.train.epochs

    def run(self, count: int) -> list[Seconds]:
        """Make so many updates, or as many as the training has; the seconds of each."""
        count = min(count, self.updates)
        # An epoch that begins within them costs its order of images too, and is not what is asked.
        middle = self.updates // 2 // self.loop.steps_per_epoch * self.loop.steps_per_epoch
        self.training.updates = max(0, min(middle, self.updates - count))
        self.training.best_robust, self.training.collapsed_at, self.training.is_over = 0.0, None, False
        self.marks.wanted, self.marks.intervals = count, []
        with suppress(Interrupted):
            fit(self.training, self.loop)
        return self.marks.intervals

    def sample(self, repeats: int) -> Seconds:
        """Mean seconds of so many updates."""
        intervals = self.run(repeats)
        return sum(intervals, Seconds()) * (1 / len(intervals))

    def peak(self) -> int:
        """The most bytes that tensors take in an update, beside the weights and what is kept between updates."""
        # Gradients count as the update's own, which drops those of the last one.
        self.training.network.zero_grad(set_to_none=True)
        return peak_bytes(lambda: self.run(1), self.device)

    def epoch_end(self) -> Seconds:
        """Averaging the weights and storing them, without the check: the mean of all epochs."""
        average, share = self.average_of_the_end()
        begun = now(self.device)
        batches = _Batches(self.loop.data, self.spec.train)
        evaluated = average.averaged(self.training.network, batches)
        averaged = (now(self.device) - begun) * (batches.scale * share)
        begun = now(self.device)
        self.saver.save(evaluated, True, {})
        return averaged + (now(self.device) - begun)

    def average_of_the_end(self) -> tuple[RunningAverage, float]:
        """A new average that has taken a network in as soon as it does, and in what share of the epochs it has one.

        Until then the trained network is evaluated, which takes no time.
        """
        average, network = self.defense.averaging.start(self.training.network), self.training.network
        length, epochs = self.loop.steps_per_epoch, self.spec.train.epochs
        for epoch in range(epochs):
            average.update(network, Progress((epoch + 1) * length - 1, length, epochs))
            if average.averaged(network, _no_images) is not network:
                return average, 1 - epoch / epochs
        return average, 0.0

    def check(self) -> Check:
        """What is asked of the weights after every epoch."""
        return Check(self.loop.settings, self.defense, self.loop.data, self.loop.threat)


@dataclass
class _Batches:
    """Some of the batches of all training images, for an average that goes through them."""

    data: Data
    settings: TrainSettings
    scale: float = 1.0

    def __call__(self) -> Iterator[Tensor]:
        total = -(-self.data.sizes["train"] // self.settings.batch_size)
        self.scale = max(1.0, total / _SAMPLED)
        return islice(self.data.clean_batches(self.settings.batch_size), _SAMPLED)


@dataclass(frozen=True)
class Updates:
    """What was measured.

    Args:
        seconds: of each update.
        epoch_end: beside the check.
        peak: bytes of an update.
    """

    seconds: list[Seconds]
    epoch_end: Seconds
    peak: int

    @property
    def median(self) -> Seconds:
        return median(self.seconds)


def measure_updates(trial: Trial, count: int) -> Updates:
    """Some updates after a warm-up, and the end of an epoch."""
    with no_early_exit():
        trial.run(_WARM_UP)
        seconds = trial.run(count)
    trial.epoch_end()
    return Updates(seconds, trial.epoch_end(), trial.peak())


def trial_folder() -> "TemporaryDirectory[str]":
    """Where a trial stores what it stores; gone afterwards."""
    return TemporaryDirectory(prefix="robust-plan-")


def _no_images() -> Iterator[Tensor]:
    return iter(())


def _unchecked(_: nn.Module) -> dict[str, Any]:
    return {"clean": 0.0, "robust": 0.0, "fgsm": 0.0}


def _unsaved(*_: Any) -> None:
    pass
