"""`robust train`: spec -> components -> training -> evaluations -> stored results."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from robustcli.architectures import Searched
from robustcli.data.loading import load_data
from robustcli.data.splits import Data
from robustcli.defenses import Defense
from robustcli.errors import RobustCliError
from robustcli.evaluation.fingerprint import files_digest
from robustcli.evaluation.stored import Task
from robustcli.evaluation.watcher import Watcher
from robustcli.evaluators import Evaluator
from robustcli.models.build import SELECTED_ON_TEST, network_of
from robustcli.models.digest import weights_digest
from robustcli.registry.registry import instantiate
from robustcli.runtime import ranks
from robustcli.runtime.allocator import keep_freed_memory
from robustcli.runtime.device import choose_device, describe_device, tuned_convolutions
from robustcli.runtime.process_group import backend, joined
from robustcli.runtime.signals import StopRequest, stop_requests
from robustcli.specs.data_guards import unverified
from robustcli.specs.derivation import derived_spec
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.chain import chained
from robustcli.store.checkpoint import CheckedCheckpoint, ResumableCheckpoint
from robustcli.store.evaluations import read_evaluation
from robustcli.store.files import write_text
from robustcli.store.provenance import DataRecord, read_provenance
from robustcli.store.records import CheckRecord, Record
from robustcli.store.results import RunResults
from robustcli.store.runs import Run, RunFolder, check_same, folder_of
from robustcli.store.sinks import LiveLogs, require_packages
from robustcli.threat.threat import ThreatModel
from robustcli.training.loop import fit
from robustcli.training.setup import assemble
from robustcli.workflows.outcome import run_outcome


def run_experiment(spec: ExperimentSpec, root: Path, watcher: Watcher, *, resume: bool = False) -> RunFolder:
    """Train, evaluate and store; finished parts are not repeated.

    The processes that torchrun started work together; the first one holds the lock and writes.

    Raises:
        Interrupted: a signal asked to stop; everything done so far is kept.
        RobustCliError: something that the user can fix.
    """
    device = choose_device(ranks.own_device(spec.train.device), "train.device")
    with joined(device.type):
        return _run_experiment(spec, root, device, watcher, resume=resume or ranks.is_restarted())


def _run_experiment(
    spec: ExperimentSpec, root: Path, device: torch.device, watcher: Watcher, *, resume: bool
) -> RunFolder:
    require_packages(spec.train.log)
    defense: Defense = instantiate(spec.defense)
    evaluators = {key: instantiate(chosen) for key, chosen in spec.evaluate.items()}
    found = folder_of(root, spec)
    if ranks.from_first(lambda: found.is_finished):
        # Without a lock, because the folder may be read-only.
        ranks.from_first(lambda: check_same(found, spec, resume=resume))
        return found
    run = _open(root, spec, resume=resume)
    try:
        if ranks.from_first(lambda: found.is_finished):
            run.close()
            return found
        with stop_requests() as stop:
            data = load_data(spec.data, device, to_train=True)
            _require_same_data(data)
            keep_freed_memory()  # After reading the images, so that memory used for that is returned.
            # Before the training, because the spec of a trained network cannot be changed.
            _require_evaluable(spec, evaluators, data.sizes.test, found)
            described = DataRecord(
                digest=data.digest, sizes=data.sizes, decode=data.decode, extra_digest=data.extra_digest
            )
            ranks.from_first(lambda: run.begin(describe_device(device), described))
            if ranks.world() > 1:
                run.note(processes=ranks.world(), backend=backend(device.type))
            _train(spec, defense, data, device, run, watcher, stop)
            best = ranks.from_first(lambda: CheckedCheckpoint.read(found.best))
            _, network = network_of(best, device, found.best)
            if spec.architecture.member.searches:
                body = cast("Searched", network.body)
                ranks.from_first(lambda: write_text(found.derived, derived_spec(spec, body.derived())))
            _evaluate(spec, evaluators, data, network, found, watcher, best.check.held_out_accuracy)
            ranks.from_first(lambda: run.finish(_results(spec, network, found)))
    except BaseException:
        run.abandon()
        raise
    run.close()
    return found


def _require_same_data(data: Data) -> None:
    """Raise if the processes, which may run on several machines, read different images."""
    if not ranks.is_same_everywhere(f"{data.digest} {data.extra_digest}"):
        raise RobustCliError(
            f"data: the processes read different images (process {ranks.rank()}: digest {data.digest[:12]}"
            f"{f', extra images {data.extra_digest[:12]}' if data.extra_digest else ''}); expected the same files on "
            "every machine"
        )


def _require_evaluable(
    spec: ExperimentSpec, evaluators: Mapping[str, Evaluator], test_images: int, folder: RunFolder
) -> None:
    """Raise if images are missing for an evaluation, or a file that it needs, such as another network."""
    for key, chosen in spec.evaluate.items():
        count = chosen.options.examples
        if count is not None and count > test_images:
            raise RobustCliError(f"evaluate.{key}.examples: {count}; there are {test_images} test images")
        if not folder.evaluation(key).result.exists():
            try:
                files_digest(evaluators[key].files)
            except RobustCliError as error:
                raise RobustCliError(f"evaluate.{key}: {error}") from error


def _train(
    spec: ExperimentSpec,
    defense: Defense,
    data: Data,
    device: torch.device,
    run: Run,
    watcher: Watcher,
    stop: StopRequest,
) -> None:
    """Train to the end, resuming from the last checkpoint if there is one."""

    def log(record: Record) -> None:
        run.log(record)
        logs.write(record)

    training, loop, saver = assemble(
        spec,
        defense,
        data,
        device,
        run.folder,
        log=log,
        note=lambda facts: run.note(**facts),
        stop_requested=lambda: stop.is_made,
        watcher=watcher,
    )
    with stop.held():
        if ranks.from_first(run.folder.last.exists):
            saver.reload(run.folder.last)
            if not training.is_over:
                ranks.from_first(lambda: run.folder.keep_epochs(training.updates // loop.steps_per_epoch))
        else:
            ranks.from_first(lambda: run.folder.keep_epochs(0))
            saver.save(training.network, True, CheckRecord())
        # After epochs that will be repeated were dropped.
        logs = LiveLogs(spec.train.log if ranks.is_first() else (), run.folder, spec.to_plain())
        try:
            with tuned_convolutions(device):
                fit(training, loop)
        finally:
            logs.close()


def _evaluate(
    spec: ExperimentSpec,
    evaluators: Mapping[str, Evaluator],
    data: Data,
    network: nn.Module,
    folder: RunFolder,
    watcher: Watcher,
    expected_clean: float | None,
) -> None:
    """Run every evaluation that is not stored yet; several processes take shards of the images."""
    threat = ThreatModel(spec.threat.norm, spec.threat.eps)
    stamps = [SELECTED_ON_TEST] if spec.train.allow_test_selection else []
    doubts = unverified(spec.defense, spec.data, spec.evaluate)
    for key, chosen in spec.evaluate.items():
        task = Task(
            files=folder.evaluation(key),
            chosen=chosen,
            evaluator=evaluators[key],
            data=data,
            network=network,
            threat=threat,
            seed=spec.seed,
            stamps=[*stamps, *([doubts[key]] if key in doubts else [])],
            expected_clean=expected_clean,
        )
        if not task.files.result.exists():
            watcher.evaluation(key, None)
        if ranks.world() > 1:
            task.run_shards(partial(watcher.attack, key))
            ranks.wait()
        watcher.evaluation(key, ranks.from_first(partial(task.run, partial(watcher.attack, key))))


def _results(spec: ExperimentSpec, network: nn.Module, folder: RunFolder) -> RunResults:
    """Return the results, bound to all other files of the run."""
    best = CheckedCheckpoint.read(folder.best)
    training = ResumableCheckpoint.read(folder.last).training
    data = read_provenance(folder.provenance).data
    results = RunResults(
        **run_outcome(spec, best.check, training, data.sizes),
        data=data,
        precision=folder.begun_precision(),
        evaluations={key: read_evaluation(folder.evaluation(key).result) for key in spec.evaluate},
    )
    return chained(folder.path, results, weights_digest(network))


class _Follower(Run):
    """The run in the other processes of torchrun, for which the first one holds the lock and writes."""

    def __init__(self, folder: RunFolder, spec: ExperimentSpec) -> None:
        self.folder, self.spec = folder, spec

    def close(self) -> None:
        pass

    def abandon(self) -> None:
        pass

    def note(self, **facts: Any) -> None:
        pass

    def log(self, record: Record) -> None:
        pass


def _open(root: Path, spec: ExperimentSpec, *, resume: bool) -> Run:
    """Open the run in the first process, and follow it in the others."""
    opened: list[Run] = []
    ranks.from_first(lambda: opened.append(Run.open(root, spec, resume=resume)))
    return opened[0] if opened else _Follower(folder_of(root, spec), spec)
