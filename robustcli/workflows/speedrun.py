"""`robust bench speedrun`: robust accuracy of methods that get the same processor time for training."""

import math
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Literal

from robustcli.attacks.active_set import no_early_exit
from robustcli.data.loading import load_data
from robustcli.errors import RobustCliError
from robustcli.evaluation.progress import StageProgress
from robustcli.evaluation.watcher import Watcher
from robustcli.evaluation.wording import accuracies
from robustcli.measuring.machine import Circumstances
from robustcli.registry.registry import instantiate
from robustcli.runtime.device import choose_device
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.evaluations import Evaluation
from robustcli.store.files import read_json, write_json
from robustcli.store.models import Stored, parsed
from robustcli.store.records import Record
from robustcli.store.runs import RunFolder, folder_of
from robustcli.store.sweep_rows import SweepRow
from robustcli.training.choices import chosen_settings
from robustcli.workflows.plan.updates import Trial, trial_folder
from robustcli.workflows.sweep import Outcome, run_rows, summary
from robustcli.workflows.sweep_spec import Row, Sweep

# Share of the budget that the measured speed is planned to use, and how often a length that does not fit is shortened.
_PLANNED, _ATTEMPTS = 0.94, 3
# Share of the budget that a finished training may have used: its last check comes after its last update.
_EXCESS = 1.05
# Updates that are measured to learn the speed, after some that fill caches.
_UPDATES, _WARM_UP = 30, 10
_UNITS = {"s": 1, "m": 60, "h": 3600}
# Rows of this name, and of names that continue it, are compared with the others and with each other.
CANDIDATE = "candidate"


def parse_budget(text: str) -> float:
    """Return seconds of processor time.

    Raises:
        RobustCliError: the text is not a duration.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if found is None or not float(found[1]):
        raise RobustCliError(f"--budget: found '{text}'; expected processor time such as 40m, 90s or 1h")
    return float(found[1]) * _UNITS[found[2]]


class Length(Stored):
    """Length of a training: epochs, and training images if one epoch over all of them takes too long."""

    epochs: int
    train_size: int | None = None

    @property
    def overrides(self) -> list[str]:
        """The length as changes of a spec."""
        size = [] if self.train_size is None else [f"data.train_size={self.train_size}"]
        return [f"train.epochs={self.epochs}", *size]

    def shortened(self, share: float, batch_size: int) -> "Length | None":
        """Return a share of this length in whole epochs, or in images of one epoch; None if that is not a batch."""
        if epochs := int(share * self.epochs):
            return self.model_copy(update={"epochs": epochs})
        images = int(share * self.epochs * (self.train_size or 0))
        return Length(epochs=1, train_size=images) if images >= batch_size else None


class Result(Stored):
    """A row of the table.

    Args:
        row: summary over the seeds.
        processor_seconds: processor time of training, by seed.
    """

    row: SweepRow
    length: Length
    processor_seconds: list[float]


class Speedrun(Circumstances):
    """Result of `robust bench speedrun`."""

    bench: Literal["speedrun"] = "speedrun"
    budget_seconds: float
    rows: list[Result]


class _Spent(Stored):
    """processor.json of a run: processor time of its training so far."""

    processor_seconds: float


def run_speedrun(
    path: Path,
    overrides: Sequence[str],
    only: Sequence[str],
    budget: float,
    root: Path,
    watcher: Watcher,
    tell: Callable[[str], None],
) -> list[Result]:
    """Train every row of a sweep for the budget, with every seed, and evaluate it. Finished runs are read.

    The number of epochs is what the measured speed allows, so every schedule ends with the budget.

    Args:
        path: file of a sweep. The rows give everything but the length of training.
        budget: seconds of processor time of one training: all threads and compilers, from reading the images on.
        tell: called with a line about every measurement and every length that did not fit.

    Raises:
        Interrupted: a signal asked to stop; run it again to continue.
        RobustCliError: an error of the user; a row that trains on a GPU, or too small a budget.
    """
    # In this process and its children, whose time is counted; not in workers that outlive the compilation.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    sweep = Sweep.read(path, overrides, only)
    if not set.intersection(*(set(row.specs[0].evaluate) for row in sweep.rows)):
        raise RobustCliError(
            f"{path}: the rows have no evaluation in common, so they cannot be compared; write one under base, such as "
            "evaluate: {clean: clean}"
        )
    known = Lengths(root / f"{sweep.name}.speedrun.json", budget)
    results = []
    for row in sweep.rows:
        if choose_device(row.specs[0].train.device, "train.device").type != "cpu":
            raise RobustCliError(f"row {row.name}: a speedrun counts processor time; expected train.device=cpu")
        length = known.get(row)
        if length is None:
            tell(f"{row.name}: measuring {_UPDATES} updates")
            length = fitted_length(measured_costs(row.specs[0]), budget, row.specs[0].train.batch_size)
        for attempt in range(1, _ATTEMPTS + 1):
            known.put(row, length)
            # Checked like any spec: some settings depend on the number of epochs.
            shaped = Sweep.read(path, [*overrides, *length.overrides], [row.name]).rows[0]
            try:
                outcomes = [_train(spec, row.name, root, budget, watcher) for spec in shaped.specs]
                break
            except _UsedUpError as error:
                shorter = length.shortened(0.95 * error.share, row.specs[0].train.batch_size)
                if attempt == _ATTEMPTS or shorter is None:
                    raise RobustCliError(f"row {row.name}: {error}; expected a larger --budget") from error
                tell(f"{row.name}: {error}; starting again with {' '.join(shorter.overrides)}")
                length = shorter
        seconds = [_seconds_of(outcome.folder) for outcome in outcomes]
        results.append(Result(row=summary(shaped, outcomes, root), length=length, processor_seconds=seconds))
    return results


@dataclass(frozen=True)
class Costs:
    """Processor seconds of a training.

    Args:
        start: reading the images.
        update: one update.
        end: check and storing after an epoch.
        updates: updates of an epoch.
        images: training images.
    """

    start: float
    update: float
    end: float
    updates: int
    images: int


def measured_costs(spec: ExperimentSpec) -> Costs:
    """Measure some updates and the end of an epoch; robust networks cost more than untrained ones only in the check."""
    device = choose_device(spec.train.device, "train.device")
    begun = _processor_seconds()
    data = load_data(spec.data, device, to_train=True)
    start = _processor_seconds() - begun
    spec = replace(spec, train=chosen_settings(spec, instantiate(spec.defense), data, device))
    with trial_folder() as folder, no_early_exit():
        trial = Trial(spec, data, device, Path(folder), _processor_seconds)
        trial.run(_WARM_UP)
        # The median, because other processes slow single updates down.
        update = median(trial.run(_UPDATES))
        begun = _processor_seconds()
        trial.epoch_end()
        trial.check()(trial.training.network)
        end = _processor_seconds() - begun
    return Costs(start, update, end, trial.loop.steps_per_epoch, data.sizes.train)


def fitted_length(costs: Costs, budget: float, batch_size: int) -> Length:
    """Return the length of a training that the budget allows.

    Raises:
        RobustCliError: there is not even time for one update.
    """
    room = _PLANNED * budget - costs.start
    if (epochs := int(room / (costs.updates * costs.update + costs.end))) > 0:
        return Length(epochs=epochs)
    images = int(costs.images * (room - costs.end) / (costs.updates * costs.update))
    if images < batch_size:
        least = math.ceil((costs.start + costs.end + costs.update) / _PLANNED)
        raise RobustCliError(f"--budget: found {budget:g} s; expected at least {least} s, which one update takes")
    return Length(epochs=1, train_size=images)


def table(results: Sequence[Result]) -> str:
    """Return the results as a Markdown table.

    The candidate is compared with the best of the other rows, and its variants with the candidate, by the mean of the
    last evaluation that all rows have.
    """
    keys = [key for key in results[0].row.evaluations if all(key in found.row.evaluations for found in results)]
    means = {
        found.row.row: 100 * mean(evaluation.accuracy for evaluation in found.row.evaluations[keys[-1]])
        for found in results
        if found.row.evaluations[keys[-1]]
    }
    best = max((row for row in means if not row.startswith(CANDIDATE)), key=means.__getitem__, default=None)
    lines = [["row", "epochs", "images", "processor minutes", *(f"{key} %" for key in keys), f"{keys[-1]}, difference"]]
    lines.append(["---"] * len(lines[0]))
    for found in results:
        name = found.row.row
        other = None if not name.startswith(CANDIDATE) else best if name == CANDIDATE else CANDIDATE
        is_compared = name in means and other in means
        lines.append(
            [
                name,
                str(found.length.epochs),
                "all" if found.length.train_size is None else str(found.length.train_size),
                f"{mean(found.processor_seconds) / 60:.1f} (at most {max(found.processor_seconds) / 60:.1f})",
                *(accuracies(found.row.evaluations[key]) if found.row.evaluations[key] else "failed" for key in keys),
                f"{means[name] - means[str(other)]:+.1f} to {other}" if is_compared else "",
            ]
        )
    notes = [
        f"- {found.row.row}, seed {seed}: failed: {text}.\n"
        for found in results
        for seed, text in found.row.failures.items()
    ]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines) + "".join(["\n", *notes] if notes else [])


def _train(spec: ExperimentSpec, name: str, root: Path, budget: float, watcher: Watcher) -> Outcome:
    folder = folder_of(root, spec)
    if folder.path.is_dir() and _used(folder) is None:
        raise RobustCliError(f"{folder.path}: not trained by a speedrun, so its processor time is not known; move it")
    if folder.is_finished and (used := _seconds_of(folder)) > _EXCESS * budget:
        # Trained with a larger budget.
        raise _UsedUpError(budget / used)
    meter = _Meter(watcher, folder, budget)
    try:
        return run_rows([Row(name, (spec,))], root, meter)[name][0]
    finally:
        meter.keep()


class _UsedUpError(Exception):
    """The budget was used up before the end of training.

    Attributes:
        share: of the updates that were made.
    """

    def __init__(self, share: float) -> None:
        super().__init__(f"the budget was used up after {100 * share:.0f} % of the updates")
        self.share = share


class _Meter(Watcher):
    """Watcher that adds up the processor time of a training, and ends it when the budget is used up."""

    def __init__(self, inner: Watcher, folder: RunFolder, budget: float) -> None:
        self._inner, self._folder, self._budget = inner, folder, budget
        self._before, self._start = _used(folder) or 0.0, _processor_seconds()
        self._updates = self._done = 0
        self._is_over = folder.is_finished

    def keep(self) -> None:
        """Store the time so far; after training nothing more is added."""
        if not self._is_over and self._folder.path.is_dir():
            write_json(_file(self._folder), _Spent(processor_seconds=self._spent).to_json())

    @property
    def _spent(self) -> float:
        return self._before + _processor_seconds() - self._start

    def settings(self, text: str) -> None:
        self._inner.settings(text)

    def begin(self, updates: int, done: int) -> None:
        self._updates, self._done = updates, done
        # Trained before, so that only evaluations are missing.
        self._is_over |= done >= updates
        self.keep()
        self._inner.begin(updates, done)

    def step(self, images: int) -> None:
        self._inner.step(images)
        self._done += 1
        if self._spent > self._budget and self._done < self._updates:
            raise _UsedUpError(self._done / self._updates)

    def epoch(self, record: Record) -> None:
        self.keep()
        self._inner.epoch(record)

    def evaluation(self, key: str, result: Evaluation | None) -> None:
        self.keep()
        self._is_over = True
        self._inner.evaluation(key, result)

    def attack(self, key: str, progress: StageProgress) -> None:
        self._inner.attack(key, progress)


class Lengths:
    """Lengths that were chosen for a budget, in a file, so that an interrupted speedrun continues with them."""

    def __init__(self, file: Path, budget: float) -> None:
        self._file, self._budget = file, budget

    def get(self, row: Row) -> Length | None:
        return self._stored().get(self._key(row))

    def put(self, row: Row, length: Length) -> None:
        stored = {**self._stored(), self._key(row): length}
        write_json(self._file, {key: found.to_json() for key, found in stored.items()})

    def _stored(self) -> dict[str, Length]:
        """Read anew, because other processes may train other rows."""
        stored = read_json(self._file) if self._file.is_file() else {}
        return {key: parsed(Length, found, self._file) for key, found in stored.items()}

    def _key(self, row: Row) -> str:
        return f"{row.specs[0].digest} {self._budget:g} s"


def _processor_seconds() -> float:
    """Processor time of this process and of its children that have ended, such as compilers."""
    children = os.times()
    return time.process_time() + children.children_user + children.children_system


def _file(folder: RunFolder) -> Path:
    return folder.path / "processor.json"


def _used(folder: RunFolder) -> float | None:
    file = _file(folder)
    return parsed(_Spent, read_json(file), file).processor_seconds if file.is_file() else None


def _seconds_of(folder: RunFolder) -> float:
    return _used(folder) or 0.0
