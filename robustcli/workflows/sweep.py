"""The story of a sweep: every row is a run that is trained, gone on with or read; then what is told of it."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from robustcli.architectures import ImageShape
from robustcli.defenses import Defense
from robustcli.errors import CollapseError, EvaluationError, InUseError, NotFiniteError, RobustCliError
from robustcli.evaluation.watcher import EvaluationWatcher
from robustcli.measuring.passes import passes_of
from robustcli.registry.registry import instantiate
from robustcli.registry.types import exact_text
from robustcli.runtime.signals import stop_requests
from robustcli.specs.spec import ExperimentSpec
from robustcli.store import checkpoint
from robustcli.store.files import read_json
from robustcli.store.runs import RunFolder, folder_of
from robustcli.workflows.sweep_spec import Row
from robustcli.workflows.train import run_experiment

# Seconds between two looks at rows that other processes work on.
_PATIENCE = 2.0
# Of a result, what a table and its reader need; the rest lies in the run.
_TOLD = ("evaluator", "norm", "eps", "correct", "total", "accuracy", "interval", "parameters", "warnings")


@dataclass(frozen=True)
class Outcome:
    """What became of one row with one seed.

    Args:
        failure: why it has no results, or None.
    """

    spec: ExperimentSpec
    folder: RunFolder
    failure: str | None = None


def run_rows(rows: Sequence[Row], root: Path, watcher: EvaluationWatcher) -> dict[str, list[Outcome]]:
    """Every row to its end, one after the other; those that other processes have are left to them and read later.

    A row that fails in training or in evaluation is an outcome, and stays one: its run has to be deleted to be tried
    again.

    Raises:
        Interrupted: a signal asked to stop; everything done so far is kept.
        RobustCliError: something a user can mend that concerns more than one row, such as missing images.
    """
    found: dict[tuple[str, int], Outcome] = {}
    waiting = [(row.name, spec) for row in rows for spec in row.specs]
    with stop_requests():
        while waiting:
            in_use = []
            for name, spec in waiting:
                try:
                    found[name, spec.seed] = _run(spec, root, watcher)
                except InUseError:
                    in_use.append((name, spec))
            if len(in_use) == len(waiting):
                time.sleep(_PATIENCE)
            waiting = in_use
    return {row.name: [found[row.name, spec.seed] for spec in row.specs] for row in rows}


def _run(spec: ExperimentSpec, root: Path, watcher: EvaluationWatcher) -> Outcome:
    folder = folder_of(root, spec)
    # What failed fails again: the same seed gives the same numbers.
    if folder.status() in ("failed", "collapsed") and not folder.is_finished:
        return Outcome(spec, folder, str(folder.records()[-1]["text"]))
    try:
        return Outcome(spec, run_experiment(spec, root, watcher, resume=True))
    except (CollapseError, NotFiniteError, EvaluationError) as failure:
        return Outcome(spec, folder, str(failure))


def summary(row: Row, outcomes: Sequence[Outcome], root: Path) -> dict[str, Any]:
    """One row as plain values: settings, status and accuracies of every seed, cost."""
    spec = row.specs[0]
    done = [outcome for outcome in outcomes if outcome.failure is None]
    results = [read_json(outcome.folder.results) for outcome in done]
    checks = [[record["robust"] for record in _epochs(outcome) if "robust" in record] for outcome in done]
    speeds = [speed for outcome in done if (speed := images_per_second(outcome)) is not None]
    passes = _passes(spec, outcomes)
    return {
        "row": row.name,
        "threat": {"norm": spec.threat.norm, "eps": exact_text(spec.threat.eps)},
        "epochs": spec.train.epochs,
        "seeds": [outcome.spec.seed for outcome in done],
        "failures": {str(outcome.spec.seed): outcome.failure for outcome in outcomes if outcome.failure is not None},
        "collapsed_at": [found["collapsed_at"] for found in results],
        "evaluations": {
            key: [
                {name: found["evaluations"][key][name] for name in _TOLD}
                | {"suspicions": found["evaluations"][key].get("suspicions", [])}
                for found in results
            ]
            for key in spec.evaluate
        },
        "passes": passes,
        "images_per_second": mean(speeds) if speeds else None,
        "best_minus_last": mean(max(robust) - robust[-1] for robust in checks) if checks and all(checks) else None,
        "runs": [outcome.folder.path.relative_to(root).as_posix() for outcome in outcomes],
    }


def images_per_second(outcome: Outcome) -> float | None:
    """Images that updates were made on in a second of training, in the median epoch; None without an epoch.

    The median, since an epoch that a kill cut in two has the seconds of its second half alone.
    """
    defense: Defense = instantiate(outcome.spec.defense)
    images = read_json(outcome.folder.provenance)["data"]["sizes"]["train"] * defense.replays
    seconds = [record["seconds"] for record in _epochs(outcome) if record["seconds"] > 0]
    return images / median(seconds) if seconds else None


def _epochs(outcome: Outcome) -> list[dict[str, Any]]:
    return [record for record in outcome.folder.records() if "event" not in record]


def _passes(spec: ExperimentSpec, outcomes: Sequence[Outcome]) -> dict[str, float] | None:
    """Of an update; None where no checkpoint is left to say for which images, or the network has no convolution."""
    kept = [outcome.folder.best for outcome in outcomes if outcome.folder.best.is_file()]
    if not kept:
        return None
    try:
        return asdict(passes_of(spec, ImageShape(*checkpoint.load(kept[0])["shape"])))
    except RobustCliError:
        return None
