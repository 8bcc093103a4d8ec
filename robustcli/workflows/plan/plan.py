"""Estimate the time and memory of a run from a few real updates and short attacks."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import torch

from robustcli.attacks.active_set import no_early_exit
from robustcli.attacks.pgd import Pgd
from robustcli.data.splits import Data
from robustcli.defenses import Defense
from robustcli.diagnostics.one_step import BESIDE_PGD
from robustcli.errors import RobustCliError
from robustcli.evaluators.attack import Attacked
from robustcli.measuring.machine import circumstances
from robustcli.measuring.memory import DoesNotFitError, device_bytes, fitting, free_bytes, peak_bytes
from robustcli.measuring.network_profile import profile_of
from robustcli.measuring.passes import passes_of
from robustcli.measuring.timing import wall
from robustcli.registry.registry import instantiate
from robustcli.runtime.allocator import keep_freed_memory
from robustcli.runtime.device import choose_device
from robustcli.runtime.precision import full_precision
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.passes import Passes
from robustcli.threat.threat import ThreatModel
from robustcli.training.check import Check
from robustcli.training.choices import chosen_settings
from robustcli.workflows.plan.evaluations import BROKEN_PASSES, EvaluationCost, Probe, probe_for
from robustcli.workflows.plan.images import images_of
from robustcli.workflows.plan.result import Bounds, EvaluationPlan, Images, Memory, Plan, TrainingPlan
from robustcli.workflows.plan.savings import changes_of, measure_savings
from robustcli.workflows.plan.updates import WARM_UP, Trial, trial_folder
from robustcli.workflows.plan.work import PassTimes

_GUESS = Bounds(0.3, 0.6)


@dataclass(frozen=True, kw_only=True)
class Request:
    """Options of `robust plan`.

    Args:
        spec: experiment.
        updates: number of updates to measure.
        robust: lower and upper bound of the robust accuracy to assume, between 0 and 1; None: the spec's claim, or 0.3
            to 0.6 without a claim.
        savings: measure bf16.
        compile: measure compilation too.
        startup: seconds that the process took before, which a run takes as well.
        announce: is called on a CPU with a rough estimate of the seconds that the measured updates will take.
        begins: is called with each part of the measurement before it begins.
    """

    spec: ExperimentSpec
    updates: int = 20
    robust: tuple[float, float] | None = None
    savings: bool = True
    compile: bool = False
    startup: float = 0.0
    announce: Callable[[float], None] = lambda seconds: None
    begins: Callable[[str], None] = lambda part: None

    @property
    def accuracy(self) -> Bounds:
        """Assumed robust accuracy of an attack that no claim is about."""
        return _GUESS if self.robust is None else Bounds(*self.robust)

    def accuracy_in(self, key: str) -> Bounds:
        """Assumed robust accuracy of an evaluation of the spec."""
        claimed = {} if self.spec.claim is None else self.spec.claim.metrics
        if self.robust is None and key in claimed:
            return Bounds(claimed[key], claimed[key])
        return self.accuracy


def plan(request: Request) -> Plan:
    """Return the estimated cost of a run.

    Raises:
        RobustCliError: the images or the device are missing, or a setting is invalid.
    """
    spec = request.spec
    device = choose_device(spec.train.device, "train.device")
    before = wall(device)
    data, replaced = images_of(spec, device)
    start = request.startup + wall(device) - before
    keep_freed_memory()
    profile = profile_of(spec.architecture, data.shape)
    found = partial(
        Plan,
        machine=circumstances(device),
        name=spec.name,
        digest=spec.digest,
        images=Images(shape=data.shape.text, sizes=dict(data.sizes), replaced=replaced),
        parameters=profile.parameters,
        macs=profile.macs,
        passes_per_image=passes_per_image(spec, data),
    )
    spec = replace(spec, train=chosen_settings(spec, instantiate(spec.defense), data, device))
    request = replace(request, spec=spec)
    free = free_bytes(device)
    try:
        with trial_folder() as folder, fitting():
            seconds, times, updates, probe = _measured(request, data, device, Path(folder))
    except DoesNotFitError as error:
        return found(memory=_memory(device, free), notes=[_too_large(spec, device, error)])
    memory, savings = _memory(device, free), []
    checks, costs = evaluation_costs(request, data, probe)
    notes = _notes(spec, list(costs.values()))
    try:
        with fitting():
            if request.savings and changes_of(spec, with_compile=request.compile):
                request.begins("other settings: bf16 and compilation" if request.compile else "bf16")
            if request.savings:
                savings = measure_savings(spec, data, device, with_compile=request.compile)
    except DoesNotFitError:
        notes.append("other settings were not measured: two networks at once do not fit into memory")
    update = median(seconds)
    training = TrainingPlan(
        updates=updates,
        epochs=spec.train.epochs,
        batch_size=spec.train.batch_size,
        measured=len(seconds),
        update=update,
        seconds=update * updates,
        check=sum((check.seconds(request.accuracy, times) for check in checks), Bounds(0.0, 0.0)),
    )
    evaluations = {}
    for key, cost in costs.items():
        accuracy = request.accuracy_in(key)
        evaluations[key] = EvaluationPlan(
            images=cost.images,
            survivors=accuracy if cost.stages else None,
            passes=cost.passes(accuracy),
            seconds=cost.seconds(accuracy, times),
        )
    once = Bounds(start + training.seconds, start + training.seconds) + training.check * training.epochs
    return found(
        memory=memory,
        notes=notes,
        start=start,
        training=training,
        seconds_of_a_pass=times.per_image(_batch(spec, data)),
        evaluations=evaluations,
        savings=savings,
        seconds=sum((evaluation.seconds for evaluation in evaluations.values()), once),
    )


def passes_per_image(spec: ExperimentSpec, data: Data) -> Passes | None:
    """Return the passes of an update for each image; None if the network has no convolution."""
    try:
        return passes_of(spec, data.shape)
    except RobustCliError:
        return None


def _measured(
    request: Request, data: Data, device: torch.device, folder: Path
) -> tuple[list[float], PassTimes, int, Probe]:
    """Return the seconds of some updates, those of passes in an evaluation, the number of updates, and a probe."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    spec = request.spec
    trial = Trial(spec, data, device, folder)
    if device.type == "cpu":
        request.announce(_seconds_of_updates(request, data, trial))
    request.begins(f"{WARM_UP + min(request.updates, trial.updates)} updates of {spec.train.batch_size} images")
    with no_early_exit():
        trial.run(WARM_UP)
        seconds = trial.run(request.updates)
    network = trial.training.network.eval().requires_grad_(False)
    x, _ = data.evaluation("test", _batch(spec, data))
    with full_precision(device.type):
        times = PassTimes.measured(network, x)
    return (
        seconds,
        times,
        trial.updates,
        probe_for(network, times, data, ThreatModel(spec.threat.norm, spec.threat.eps)),
    )


def _seconds_of_updates(request: Request, data: Data, trial: Trial) -> float:
    """Estimate roughly how long the measured updates will take, from a forward pass of one image on a CPU."""
    passes = passes_per_image(request.spec, data)
    if passes is None:
        return 0.0
    x, _ = data.evaluation("test", 1)
    network = trial.training.network
    was_training = network.training
    with torch.no_grad():
        network.eval()
        network(x)  # The first pass allocates memory.
        before = time.perf_counter()
        network(x)
        seconds = time.perf_counter() - before
    network.train(was_training)
    return seconds * request.spec.train.batch_size * passes.total * (WARM_UP + min(request.updates, trial.updates))


def _batch(spec: ExperimentSpec, data: Data) -> int:
    """Return the number of images whose passes are timed: no more than in an update, which is known to fit."""
    return min(spec.train.batch_size, data.sizes.test)


def evaluation_costs(
    request: Request, data: Data, probe: Probe
) -> tuple[list[EvaluationCost], dict[str, EvaluationCost]]:
    """Return the work of the parts of the check after an epoch, and of each evaluation at the end."""
    spec = request.spec
    check = Check(spec.train, instantiate(spec.defense), data, probe.threat)
    evaluators = [*check.evaluators.values()]
    if check.watches_one_step:
        # The check for catastrophic overfitting costs as much as PGD without early exit and with some more steps.
        evaluators.append(Attacked(attack=Pgd(steps=spec.train.check_steps + BESIDE_PGD)))
    request.begins("the check after every epoch")
    checks = [probe.cost(evaluator, check.count, request.accuracy.middle) for evaluator in evaluators]
    costs = {}
    for key, chosen in spec.evaluate.items():
        request.begins(f"evaluation {key}")
        images = data.sizes.test if chosen.options.examples is None else chosen.options.examples
        costs[key] = probe.cost(instantiate(chosen), images, request.accuracy_in(key).middle)
    return checks, costs


def _memory(device: torch.device, free: int | None) -> Memory:
    return Memory(peak=peak_bytes(device), device=device_bytes(device), free=free)


def _too_large(spec: ExperimentSpec, device: torch.device, error: DoesNotFitError) -> str:
    size = spec.train.batch_size
    return (
        f"does not fit: an update of {size} images ran out of memory on {device} ({error}); try "
        f"train.batch_size={max(1, size // 2)}, train.precision=bf16 or a narrower network"
    )


def _notes(spec: ExperimentSpec, costs: Sequence[EvaluationCost]) -> list[str]:
    defense: Defense = instantiate(spec.defense)
    notes = [note for cost in costs for note in cost.notes]
    if measured := spec.defense.member.measured:
        notes.insert(0, f"{spec.defense.name} {measured}")
    if defense.replays > 1:
        notes.append(f"each batch is used {defense.replays} times, each of which is an update")
    if any(cost.stages for cost in costs):
        notes.append(
            "robust accuracies are assumed (--robust); of the other images half are assumed to be misclassified "
            f"without an attack, and half to take {BROKEN_PASSES} passes if the attack stops for them"
        )
    if spec.train.compile is True:
        notes.append("the time of compilation, about a minute, is not included")
    return list(dict.fromkeys(notes))
