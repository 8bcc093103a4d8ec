"""`robust train`: spec -> components -> training -> evaluations -> stored results."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustcli.architectures import Searched
from robustcli.data import Data
from robustcli.data.loading import load_data
from robustcli.defenses import Defense
from robustcli.errors import RobustCliError
from robustcli.evaluation.stored import EvaluationFiles, Task, warn_of_slow_search
from robustcli.evaluation.watcher import EvaluationWatcher, Watcher
from robustcli.models.build import network_of
from robustcli.models.checkpoint_facts import SELECTED_ON_TEST, held_out_accuracy
from robustcli.models.digest import weights_digest
from robustcli.registry.registry import instantiate
from robustcli.runtime.allocator import keep_freed_memory
from robustcli.runtime.device import choose_device, describe_device, tuned_convolutions
from robustcli.runtime.signals import StopRequest, stop_requests
from robustcli.specs.data_guards import unverified
from robustcli.specs.derivation import derived_spec
from robustcli.specs.spec import ExperimentSpec
from robustcli.store import checkpoint
from robustcli.store.chain import chained
from robustcli.store.files import write_text
from robustcli.store.results import DataRecord, RunResults, Sizes, read_evaluation, read_provenance
from robustcli.store.runs import Run, RunFolder, check_same, folder_of
from robustcli.threat.threat import ThreatModel
from robustcli.training.loop import fit
from robustcli.training.setup import assemble
from robustcli.workflows.outcome import run_outcome


def run_experiment(spec: ExperimentSpec, root: Path, watcher: EvaluationWatcher, *, resume: bool = False) -> RunFolder:
    """Train, evaluate and store; finished parts are not repeated.

    Raises:
        Interrupted: a signal asked to stop; everything done so far is kept.
        RobustCliError: something that the user can fix.
    """
    device = choose_device(spec.train.device)
    defense: Defense = instantiate(spec.defense)
    evaluators = {key: instantiate(chosen) for key, chosen in spec.evaluate.items()}
    found = folder_of(root, spec)
    if found.is_finished:
        # Without the lock, so that a folder that cannot be written can be read.
        check_same(found, spec, resume=resume)
        return found
    run = Run.open(root, spec, resume=resume)
    try:
        if run.folder.is_finished:
            return run.folder
        with stop_requests() as stop:
            data = load_data(spec.data, device, to_train=True)
            keep_freed_memory()  # After reading the images, so that memory used for that is returned.
            test_images = data.sizes["test"]
            for key, chosen in spec.evaluate.items():
                count = chosen.options.examples
                if count is not None and count > test_images:
                    raise RobustCliError(f"evaluate.{key}.examples: {count}; there are {test_images} test images")
            described = DataRecord(
                digest=data.digest, sizes=Sizes(**data.sizes), decode=data.decode, extra_digest=data.extra_digest
            )
            run.begin(describe_device(device), described)
            left = (key for key in evaluators if not run.folder.evaluation(key).exists())
            warn_of_slow_search((evaluators[key] for key in left), device)
            _train(spec, defense, data, device, run, watcher, stop)
            best = checkpoint.load(run.folder.best, checkpoint.TO_EVALUATE)
            _, network = network_of(best, device, run.folder.best)
            if isinstance(network.body, Searched):
                write_text(run.folder.derived, derived_spec(spec, network.body.derived()))
            _evaluate(spec, evaluators, data, network, run, watcher, held_out_accuracy(best["check"]))
            _finish(spec, network, run)
        return run.folder
    finally:
        run.close()


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
    training, loop, saver = assemble(
        spec,
        defense,
        data,
        device,
        run.folder,
        log=run.log,
        note=lambda facts: run.note(**facts),
        stop_requested=lambda: stop.is_made,
        watcher=watcher,
    )
    with stop.held():
        if run.folder.last.exists():
            saver.reload(run.folder.last)
            if not training.is_over:
                run.folder.keep_epochs(training.updates // loop.steps_per_epoch)
        else:
            run.folder.keep_epochs(0)
            saver.save(training.network, True, {})
        with tuned_convolutions(device):
            fit(training, loop)


def _evaluate(
    spec: ExperimentSpec,
    evaluators: Mapping[str, Any],
    data: Data,
    network: nn.Module,
    run: Run,
    watcher: EvaluationWatcher,
    expected_clean: float | None,
) -> None:
    """Run every evaluation that is not stored yet."""
    threat = ThreatModel(spec.threat.norm, spec.threat.eps)
    stamps = [SELECTED_ON_TEST] if spec.train.allow_test_selection else []
    doubts = unverified(spec.defense, spec.data, spec.evaluate)
    for key, chosen in spec.evaluate.items():
        task = Task(
            files=EvaluationFiles(run.folder.evaluations, key),
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
        watcher.evaluation(key, task.run(partial(watcher.attack, key)))


def _finish(spec: ExperimentSpec, network: nn.Module, run: Run) -> None:
    """Write results.json, bound to all other files of the run."""
    best = checkpoint.load(run.folder.best, checkpoint.TO_EVALUATE)
    training = checkpoint.load(run.folder.last, checkpoint.TO_RESUME)["training"]
    data = read_provenance(run.folder.provenance).data
    results = RunResults(
        **run_outcome(spec, best, training, data.sizes),
        data=data,
        evaluations={key: read_evaluation(run.folder.evaluation(key)) for key in spec.evaluate},
    )
    run.finish(chained(run.folder.path, results, weights_digest(network)))
