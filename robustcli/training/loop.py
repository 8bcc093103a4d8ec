"""fit(): the training loop, independent of defense, attack and norm."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from robustcli.data.mixers import Mixer
from robustcli.data.splits import Data
from robustcli.data.stores import batches_of
from robustcli.data.targets import Labels
from robustcli.defenses import Step
from robustcli.errors import CollapseError, Interrupted, NotFiniteError
from robustcli.evaluation.watcher import Watcher
from robustcli.optimization.averaging import RunningAverage
from robustcli.optimization.progress import Progress
from robustcli.optimization.rates import set_rates
from robustcli.optimization.schedules import Schedule
from robustcli.runtime import ranks
from robustcli.runtime.ranks import Slice
from robustcli.runtime.synchronized import synchronized_batch_norm
from robustcli.specs.settings import Augment, TrainSettings
from robustcli.store.checkpoint import TrainingState
from robustcli.store.records import CheckRecord, Record
from robustcli.threat.noise import StreamNoise, derive
from robustcli.threat.threat import ThreatModel
from robustcli.training.collapse import has_collapsed, in_words, withstands_one_step_only


class Means:
    """Means of a step's metrics over an epoch, summed on the device so that nothing waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.sums: dict[str, Tensor] = {}
        self.images = 0
        # Update of the first loss that is not finite, or -1.
        self.first_bad = torch.tensor(-1, device=device)

    def add(self, metrics: dict[str, Tensor], images: int, step: int) -> None:
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + images * value
        self.images += images
        is_first = ~torch.isfinite(metrics["loss"]) & (self.first_bad < 0)
        self.first_bad = torch.where(is_first, step, self.first_bad)

    def pop(self) -> dict[str, float]:
        """Return the means so far and start again. Waits for the device."""
        means = {name: float(value) / max(1, self.images) for name, value in self.sums.items()}
        self.sums, self.images = {}, 0
        return means

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums, "images": self.images}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.first_bad.device
        self.sums = {name: value.to(device) for name, value in state["sums"].items()}
        self.images = state["images"]


@dataclass
class Training:
    """Everything that changes during training; all of it is saved in a checkpoint.

    Args:
        network: the weights, with normalization inside.
        optimizer, step, average: bound to the network.
        updates: number of updates so far; with the seed it determines every random draw.
        best_score, best_epoch: score and epoch of the weights selected so far.
        best_robust: highest accuracy under the check's attack so far.
        collapsed_at: epoch in which robustness collapsed; the last epoch if the run was only ever robust to one step;
            None if it did not collapse.
        is_over: whether training ended before its last epoch (after a rewind).
    """

    network: nn.Module
    optimizer: Optimizer
    step: Step
    average: RunningAverage
    means: Means
    updates: int = 0
    best_score: float = -math.inf
    best_epoch: int = 0
    best_robust: float = 0.0
    collapsed_at: int | None = None
    is_over: bool = False

    def state(self) -> TrainingState:
        """Return everything, with the state of every part."""
        return TrainingState(
            updates=self.updates,
            best_score=self.best_score,
            best_epoch=self.best_epoch,
            best_robust=self.best_robust,
            collapsed_at=self.collapsed_at,
            is_over=self.is_over,
            network=self.network.state_dict(),
            optimizer=self.optimizer.state_dict(),
            step=self.step.state_dict(),
            average=self.average.state_dict(),
            means=self.means.state_dict(),
        )

    def restore(self, state: TrainingState) -> None:
        """Continue from a state; every part checks its own and may raise any error."""
        self.updates = state.updates
        self.best_score, self.best_epoch, self.best_robust = state.best_score, state.best_epoch, state.best_robust
        self.collapsed_at, self.is_over = state.collapsed_at, state.is_over
        self.network.load_state_dict(state.network)
        self.optimizer.load_state_dict(state.optimizer)
        self.step.load_state_dict(state.step)
        self.average.load_state_dict(state.average)
        self.means.load_state_dict(state.means)


@dataclass(frozen=True)
class Loop:
    """Everything that does not change during training.

    Args:
        mixer: mixes the images of a batch.
        mixes_alone: whether the mixer changes every image independently.
        replays: updates on each batch; an epoch is always one pass over the images.
        split_in_two: whether every batch alternates between images of two fixed halves.
        watches_collapse: whether a sudden loss of robustness is a failure, as for methods that are adversarial.
        check: accuracy of a network on held-out images: clean, and robust (many steps) and fgsm (one step) if the
            method is adversarial or weights are selected by it.
        save: writes a checkpoint, given the network to evaluate, whether it is the best so far, and its check.
        reload: restores the state of the best checkpoint.
        log: stores the record of an epoch or an event.
        stop_requested: whether a signal asked to stop.
        more_metrics: further metrics of the last update.
    """

    data: Data
    threat: ThreatModel
    settings: TrainSettings
    augment: Augment
    mixer: Mixer
    mixes_alone: bool
    schedule: Schedule
    replays: int
    split_in_two: bool
    watches_collapse: bool
    seed: int
    noise: StreamNoise
    check: Callable[[nn.Module], CheckRecord]
    save: Callable[[nn.Module, bool, CheckRecord], None]
    reload: Callable[[], None]
    log: Callable[[Record], None]
    stop_requested: Callable[[], bool]
    watcher: Watcher
    more_metrics: Callable[[], dict[str, Tensor]]

    @property
    def steps_per_epoch(self) -> int:
        return self.replays * self.data.steps_per_epoch(self.settings.batch_size, self.settings.drop_last)


def fit(training: Training, loop: Loop) -> None:
    """Train from the state of `training` to the last epoch.

    Raises:
        Interrupted: a signal asked to stop; the state is saved.
        NotFiniteError, CollapseError: see `errors`.
    """
    settings = loop.settings
    loop.watcher.begin(loop.steps_per_epoch * settings.epochs, training.updates)
    while not training.is_over and training.updates < loop.steps_per_epoch * settings.epochs:
        epoch, done = divmod(training.updates, loop.steps_per_epoch)
        training.network.train()
        begun = time.perf_counter()
        for part, x, labels in _batches(loop, epoch, done):
            _update(training, loop, part, x, labels)
            loop.watcher.step(part.total)
            # After the last update of an epoch, run its check first; it would be lost otherwise.
            if ranks.any_of(loop.stop_requested()) and training.updates % loop.steps_per_epoch:
                _raise_if_not_finite(training, loop)
                # Without a pass over all images: a job that has to end is killed soon.
                loop.save(training.average.averaged(training.network, lambda: ()), False, CheckRecord())
                raise Interrupted(f"stopped in epoch {epoch + 1}, after update {training.updates}")
        _raise_if_not_finite(training, loop)
        _end_epoch(training, loop, epoch, time.perf_counter() - begun)
        if ranks.any_of(loop.stop_requested()):
            raise Interrupted(f"stopped after epoch {epoch + 1}")


def _update(training: Training, loop: Loop, part: Slice, x: Tensor, labels: Labels) -> None:
    """Make one update with this process's slice of a batch."""
    progress = Progress(training.updates, loop.steps_per_epoch, loop.settings.epochs)
    set_rates(training.optimizer, loop.settings.lr * loop.schedule(progress), loop.schedule.momentum_at(progress))
    threat = loop.threat.scaled(progress.warmed_up(loop.settings.eps_warmup, loop.settings.eps_warmup_form))
    # The draws of an update depend only on (seed, update): attacks use the stream, dropout the global state.
    loop.noise.reseed(loop.seed, "attack", training.updates)
    torch.manual_seed(derive(loop.seed, "network", training.updates, *([ranks.rank()] if ranks.rank() else [])))
    with ranks.taking(part), synchronized_batch_norm(loop.settings.sync_batch_norm):
        metrics = training.step(x, labels, threat, progress)
    ranks.mean_statistics(training.network)
    training.average.update(training.network, progress)
    training.means.add({**metrics, **loop.more_metrics()}, part.total, training.updates)
    training.updates += 1
    if x.device.type == "cpu":  # On a GPU this would make every update wait, so there the end of the epoch checks.
        _raise_if_not_finite(training, loop)


def _batches(loop: Loop, epoch: int, done: int) -> Iterator[tuple[Slice, Tensor, Labels]]:
    """Yield this process's slice, with its images, for every update of an epoch after the first `done`.

    Order, augmentation and mixing depend only on (seed, epoch, batch); a replayed batch is the same every time.
    """
    skip, replayed = divmod(done, loop.replays)
    noise = StreamNoise.on(loop.noise.generator.device)
    parts, order, crop_chance = _slices(loop, epoch)
    batches = loop.data.train_batches(
        order,
        len(parts[0]),
        drop_last=loop.settings.drop_last,
        augment=loop.augment,
        rng=noise,
        skip=skip,
        crop_chance=crop_chance,
        after=lambda: _slices(loop, epoch + 1)[1:] if epoch + 1 < loop.settings.epochs else None,
    )
    for number in range(skip, len(parts)):
        part = parts[number]
        with ranks.taking(part):
            noise.reseed(loop.seed, "augment", epoch, number)
            batch = next(batches)
        noise.reseed(loop.seed, "mix", epoch, number)
        mixed = _mixed(loop, part, *batch, noise)
        for _ in range(replayed, loop.replays):
            yield part, *mixed
        replayed = 0


def _slices(loop: Loop, epoch: int) -> tuple[list[Slice], Tensor, Tensor | None]:
    """Return the slices of the batches of an epoch, the order of their images, and random numbers of decoded crops."""
    size, drop_last = loop.settings.batch_size, loop.settings.drop_last
    generator = torch.Generator().manual_seed(derive(loop.seed, "order", epoch))
    order = loop.data.epoch(generator, size, drop_last, split_in_two=loop.split_in_two)
    crop_chance = loop.data.crop_chance(len(order), generator.manual_seed(derive(loop.seed, "crop", epoch)))
    whole = batches_of(torch.arange(len(order)), size)[: loop.data.steps_per_epoch(size, drop_last)]
    parts = [Slice.of(len(places), 2 if loop.split_in_two else 1) for places in whole]
    own = torch.cat([places[part.start : part.stop] for part, places in zip(parts, whole, strict=True)])
    return parts, order[own], None if crop_chance is None else crop_chance[own]


def _mixed(loop: Loop, part: Slice, x: Tensor, labels: Labels, noise: StreamNoise) -> tuple[Tensor, Labels]:
    """Return the mixed images of a slice; a mixer that pairs images gets the whole batch."""
    with ranks.taking(part):
        if loop.mixes_alone:
            return loop.mixer(x, labels, loop.data.shape.classes, noise)
        x, labels = ranks.gathered(x), labels.map(ranks.gathered)
    x, labels = loop.mixer(x, labels, loop.data.shape.classes, noise)
    return x[part.start : part.stop], labels.map(lambda y: y[part.start : part.stop])


def _end_epoch(training: Training, loop: Loop, epoch: int, seconds: float) -> None:
    """Check the weights, detect a collapse, select, and save."""
    settings = loop.settings
    evaluated = _evaluated(training, loop)
    lr = {"lr": training.optimizer.param_groups[0]["lr"]}
    measures = {**lr, **training.means.pop(), **loop.check(evaluated).to_json()}
    record = Record(**{**measures, "epoch": epoch, "seconds": round(seconds, 3)})
    loop.log(record)
    loop.watcher.epoch(record)
    is_watched = loop.watches_collapse and training.collapsed_at is None
    if is_watched and has_collapsed(record, training.best_robust):
        _collapse(training, loop, epoch, record)
        if training.is_over:
            return
    elif is_watched and epoch + 1 == settings.epochs and withstands_one_step_only(record):
        training.collapsed_at = epoch
    training.best_robust = max(training.best_robust, record.robust or 0.0)
    score = {"last": float(epoch), "clean": record.clean, "robust": record.robust}[settings.select]
    assert score is not None
    is_best = score > training.best_score
    if is_best:
        training.best_score, training.best_epoch = score, epoch
    loop.save(evaluated, is_best, record)


def _evaluated(training: Training, loop: Loop) -> nn.Module:
    """Return the network to check and evaluate: the average, or the trained one."""
    return training.average.averaged(training.network, lambda: loop.data.clean_batches(loop.settings.batch_size))


def _collapse(training: Training, loop: Loop, epoch: int, record: Record) -> None:
    """Handle a collapse: stop, rewind and end, or continue; always recorded."""
    policy = loop.settings.on_collapse
    text = f"robustness collapsed in epoch {epoch + 1}: {in_words(record, training.best_robust)}"
    if policy == "stop":
        loop.log(Record(epoch=epoch, event="collapsed", text=text))
        raise CollapseError(f"{text}; the weights before it are kept (train.on_collapse: stop)")
    if policy == "rewind":
        loop.reload()
        training.collapsed_at, training.is_over = epoch, True
        loop.log(Record(epoch=epoch, event="rewound", text=text))
        loop.save(_evaluated(training, loop), False, CheckRecord())
    training.collapsed_at = epoch


def _raise_if_not_finite(training: Training, loop: Loop) -> None:
    first = int(training.means.first_bad)
    if first < 0:
        return
    epoch, update = divmod(first, loop.steps_per_epoch)
    batch = update // loop.replays
    text = f"the loss is not finite in epoch {epoch + 1}, batch {batch + 1} (update {first + 1})"
    loop.log(Record(epoch=epoch, event="failed", text=text))
    kept = f"the checkpoint of epoch {epoch} is kept" if epoch else "no epoch was complete before it"
    raise NotFiniteError(f"{text}; {kept}")
