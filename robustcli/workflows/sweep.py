"""`robust sweep`: train, resume or read every row, then summarize."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from robustcli.architectures import ImageShape
from robustcli.defenses import Defense
from robustcli.errors import CollapseError, EvaluationError, InUseError, NotFiniteError, RobustCliError
from robustcli.evaluation.watcher import Watcher, Watching
from robustcli.measuring.network_profile import profile_of
from robustcli.measuring.passes import passes_of
from robustcli.registry.registry import instantiate
from robustcli.registry.types import exact_text
from robustcli.runtime.signals import stop_requests
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.checkpoint import NetworkCheckpoint
from robustcli.store.evaluations import Threat
from robustcli.store.jobs import FOLDER as JOB_FOLDER
from robustcli.store.passes import Passes
from robustcli.store.provenance import read_provenance
from robustcli.store.results import read_run_results
from robustcli.store.runs import RunFolder, check_same, folder_of
from robustcli.store.sweep_rows import SweepEvaluation, SweepRow
from robustcli.workflows.engines import Answer, Engine, Needs, Task
from robustcli.workflows.sweep_spec import Row
from robustcli.workflows.train import run_experiment

# Seconds between attempts at rows that other processes use.
_PATIENCE = 2.0


@dataclass(frozen=True)
class Outcome:
    """Outcome of one row with one seed.

    Args:
        failure: reason why it has no results, or None.
    """

    spec: ExperimentSpec
    folder: RunFolder
    failure: str | None = None


def run_rows(
    rows: Sequence[Row], root: Path, watcher: Watcher, begins: Callable[[str], None] = lambda title: None
) -> dict[str, list[Outcome]]:
    """Run every row, one after the other; rows in use by another process are read once it is done.

    A row that fails in training or evaluation, or whose files are damaged, is an outcome; delete its run to try it
    again.

    Args:
        begins: is called with the row and the seed of each run that is not finished.

    Raises:
        Interrupted: a signal asked to stop; everything done so far is kept.
        RobustCliError: an error of the user that concerns more than one row, such as missing images.
    """
    found: dict[Path, Outcome] = {}
    waiting = [(row.name, spec) for row in rows for spec in row.specs]
    with stop_requests():
        while waiting:
            in_use = []
            for name, spec in waiting:
                try:
                    outcome = _settled(spec, root)
                    if outcome is None:
                        begins(f"{name}, seed {spec.seed}")
                        outcome = _run(spec, root, watcher)
                    found[folder_of(root, spec).path] = outcome
                except InUseError:
                    in_use.append((name, spec))
            if len(in_use) == len(waiting):
                time.sleep(_PATIENCE)
            waiting = in_use
    return _by_row(rows, root, found)


def _by_row(rows: Sequence[Row], root: Path, found: Mapping[Path, Outcome]) -> dict[str, list[Outcome]]:
    """Return the outcomes of every row in the order of its seeds, from the outcomes by folder."""
    return {row.name: [found[folder_of(root, spec).path] for spec in row.specs] for row in rows}


def run_rows_on(
    engine: Engine,
    needs: Needs,
    rows: Sequence[Row],
    root: Path,
    watching: Watching,
    report: Callable[[Task, Answer], None],
) -> dict[str, list[Outcome]]:
    """Run every row with every seed as a task of an engine; rows that are done are read.

    Args:
        needs: GPUs and cores of each task.
        watching: returns the watcher of a task; called in its process.
        report: is called with each task when it has ended.

    Raises:
        Interrupted: a signal asked to stop; everything done so far is kept.
        RobustCliError: some tasks gave no outcome, even after retries; the others are done.
    """
    found: dict[Path, Outcome] = {}
    tasks = []
    for spec in (spec for row in rows for spec in row.specs):
        outcome = _settled(spec, root)
        if outcome is None:
            tasks.append(_task(spec, root, watching, needs))
        else:
            found[outcome.folder.path] = outcome
    problems = []
    with stop_requests():
        for task, answer in engine.run(tasks):
            report(task, answer)
            if answer.error is None:
                found[answer.value.folder.path] = answer.value
            else:
                problems.append(f"{task.name}: {answer.error}")
    if problems:
        raise RobustCliError("\n".join(problems))
    return _by_row(rows, root, found)


def _task(spec: ExperimentSpec, root: Path, watching: Watching, needs: Needs) -> Task:
    return Task(
        name=f"{spec.name}-s{spec.seed}",
        folder=folder_of(root, spec).path / JOB_FOLDER,
        work=run_row,
        arguments=(spec, root, watching),
        **needs.on(spec.train.device),
    )


def run_row(spec: ExperimentSpec, root: Path, watching: Watching) -> Outcome:
    """Run one row with one seed: the task of an engine."""
    with watching() as watcher:
        return run_rows([Row("", (spec,))], root, watcher)[""][0]


def _run(spec: ExperimentSpec, root: Path, watcher: Watcher) -> Outcome:
    try:
        return Outcome(spec, run_experiment(spec, root, watcher, resume=True))
    except (CollapseError, NotFiniteError, EvaluationError) as failure:
        return Outcome(spec, folder_of(root, spec), str(failure))


def _settled(spec: ExperimentSpec, root: Path) -> Outcome | None:
    """Return the outcome of a row that is finished, failed or damaged; None if it has to run."""
    folder = folder_of(root, spec)
    try:
        # A failed run would fail again, because the same seed gives the same numbers.
        if folder.status() in ("failed", "collapsed") and not folder.is_finished:
            return Outcome(spec, folder, folder.records()[-1].text)
        if folder.is_finished:
            read_run_results(folder.results)
    except RobustCliError as damage:
        return Outcome(spec, folder, f"damaged: {damage}")
    if not folder.is_finished:
        return None
    check_same(folder, spec, resume=True)
    return Outcome(spec, folder)


def summary(row: Row, outcomes: Sequence[Outcome], root: Path) -> SweepRow:
    """Summarize one row: settings, status and accuracies of every seed, cost."""
    spec = row.specs[0]
    done = [outcome for outcome in outcomes if outcome.failure is None]
    results = [read_run_results(outcome.folder.results) for outcome in done]
    checks = [[record.robust for record in outcome.folder.epochs() if record.robust is not None] for outcome in done]
    speeds = [speed for outcome in done if (speed := images_per_second(outcome)) is not None]
    return SweepRow(
        row=row.name,
        threat=Threat(norm=spec.threat.norm, eps=exact_text(spec.threat.eps)),
        epochs=spec.train.epochs,
        seeds=[outcome.spec.seed for outcome in done],
        failures={str(outcome.spec.seed): outcome.failure for outcome in outcomes if outcome.failure is not None},
        collapsed_at=[found.collapsed_at for found in results],
        evaluations={key: [SweepEvaluation.of(found.evaluations[key]) for found in results] for key in spec.evaluate},
        **_costs(spec, outcomes),
        images_per_second=mean(speeds) if speeds else None,
        best_minus_last=mean(max(robust) - robust[-1] for robust in checks) if checks and all(checks) else None,
        runs=[outcome.folder.path.relative_to(root).as_posix() for outcome in outcomes],
    )


def images_per_second(outcome: Outcome) -> float | None:
    """Images per second of training in the median epoch; None without an epoch.

    The median, because an interrupted epoch counts only the seconds after it was resumed.
    """
    seconds = [record.seconds for record in outcome.folder.epochs() if record.seconds > 0]
    return _images_per_epoch(outcome) / median(seconds) if seconds else None


def update_passes(outcome: Outcome) -> Passes:
    """Passes of one update in the last epoch of a run.

    Raises:
        RobustCliError: there is no checkpoint, or the network has no convolution.
    """
    return passes_of(outcome.spec, _shape(outcome))


def _shape(outcome: Outcome) -> ImageShape:
    return ImageShape(*NetworkCheckpoint.read(outcome.folder.best).shape)


def _images_per_epoch(outcome: Outcome) -> int:
    defense: Defense = instantiate(outcome.spec.defense)
    return read_provenance(outcome.folder.provenance).data.sizes.train * defense.replays


def _costs(spec: ExperimentSpec, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Passes of one update, size of the network, and operations of a training.

    Empty if no checkpoint gives the shape of the images; without passes if the network has no convolution.
    """
    kept = [outcome for outcome in outcomes if outcome.folder.best.is_file()]
    if not kept:
        return {"passes": None}
    network = profile_of(spec.architecture, _shape(kept[0]))
    size = {"parameters": network.parameters, "macs": network.macs}
    try:
        passes = update_passes(kept[0])
    except RobustCliError:
        return {"passes": None, **size}
    images = _images_per_epoch(kept[0]) * spec.train.epochs
    return {"passes": passes, **size, "training_flops": 2 * network.macs * passes.total * images}
