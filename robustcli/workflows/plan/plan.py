"""Estimate the time and memory of a run from a few real updates and short attacks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import torch

from robustcli.attacks.active_set import no_early_exit
from robustcli.attacks.crafting import evaluating
from robustcli.attacks.pgd import Pgd
from robustcli.data import Data
from robustcli.defenses import Defense
from robustcli.diagnostics.one_step import BESIDE_PGD
from robustcli.errors import RobustCliError
from robustcli.evaluation.evaluate import settled
from robustcli.evaluators.attack import Attacked
from robustcli.measuring.machine import circumstances
from robustcli.measuring.memory import DoesNotFitError, device_bytes, fitting, free_bytes, peak_bytes
from robustcli.measuring.network_profile import profile_of
from robustcli.measuring.passes import Passes, passes_of
from robustcli.measuring.timing import wall
from robustcli.registry.registry import instantiate
from robustcli.runtime.allocator import keep_freed_memory
from robustcli.runtime.device import choose_device
from robustcli.specs.settings import EvaluateOptions
from robustcli.specs.spec import ExperimentSpec
from robustcli.threat.threat import ThreatModel
from robustcli.training.check import Check
from robustcli.training.choices import chosen_settings
from robustcli.workflows.plan.evaluations import BROKEN_PASSES, EvaluationCost, Probe
from robustcli.workflows.plan.images import images_of
from robustcli.workflows.plan.result import Bounds, EvaluationPlan, Images, Memory, Plan, TrainingPlan
from robustcli.workflows.plan.savings import measure_savings
from robustcli.workflows.plan.updates import WARM_UP, Trial, trial_folder

# Images that evaluations are measured on, at most.
_PROBED = 1000
_GUESS = Bounds(0.3, 0.6)
_UPDATE = "an update"


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
    """

    spec: ExperimentSpec
    updates: int = 20
    robust: tuple[float, float] | None = None
    savings: bool = True
    compile: bool = False

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
    device = choose_device(spec.train.device)
    before = wall(device)
    data, replaced = images_of(spec, device)
    start = wall(device) - before
    keep_freed_memory()
    profile = profile_of(spec.architecture, data.shape)
    found = partial(
        Plan,
        machine=circumstances(device),
        name=spec.name,
        digest=spec.digest,
        images=Images(shape=data.shape.text, sizes=data.sizes, replaced=replaced),
        parameters=profile.parameters,
        macs=profile.macs,
        passes_per_image=passes_per_image(spec, data),
    )
    spec = replace(spec, train=chosen_settings(spec, instantiate(spec.defense), data, device))
    request = replace(request, spec=spec)
    free = free_bytes(device)
    try:
        with trial_folder() as folder:
            training, costs = _measured(request, data, device, Path(folder))
    except DoesNotFitError as error:
        return found(memory=_memory(device, free), notes=[_too_large(spec, device, error)])
    memory, notes, savings = _memory(device, free), _notes(spec, list(costs.values())), []
    try:
        with fitting("other settings"):
            if request.savings:
                savings = measure_savings(spec, data, device, with_compile=request.compile)
    except DoesNotFitError:
        notes.append("other settings were not measured: two networks at once do not fit into memory")
    evaluations = {key: _described(cost, request.accuracy_in(key)) for key, cost in costs.items()}
    once = Bounds(start + training.seconds, start + training.seconds) + training.check * training.epochs
    return found(
        memory=memory,
        notes=notes,
        start=start,
        training=training,
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
) -> tuple[TrainingPlan, dict[str, EvaluationCost]]:
    """Measure updates and evaluations."""
    spec = request.spec
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with fitting(_UPDATE), no_early_exit():
        trial = Trial(spec, data, device, folder)
        trial.run(WARM_UP)
        seconds = trial.run(request.updates)
    network = trial.training.network
    x, _ = data.evaluation("test", min(_PROBED, data.sizes["test"]))
    with evaluating(network), settled(network, device.type):
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        probe = Probe(network, x, ThreatModel(spec.threat.norm, spec.threat.eps))
        checks, costs = measure_evaluations(request, probe, trial.check())
    update = median(seconds)
    training = TrainingPlan(
        updates=trial.updates,
        epochs=spec.train.epochs,
        batch_size=spec.train.batch_size,
        measured=len(seconds),
        update=update,
        seconds=update * trial.updates,
        check=sum((cost.seconds(request.accuracy) for cost in checks), Bounds(0.0, 0.0)),
    )
    return training, costs


def measure_evaluations(
    request: Request, probe: Probe, check: Check
) -> tuple[list[EvaluationCost], dict[str, EvaluationCost]]:
    """Measure the evaluations of the check after an epoch, and each evaluation at the end."""
    spec = request.spec
    evaluators = [*check.evaluators.values()]
    if check.watches_one_step:
        # The check for catastrophic overfitting costs as much as PGD without early exit and with some more steps.
        evaluators.append(Attacked(attack=Pgd(steps=spec.train.check_steps + BESIDE_PGD)))
    with fitting("the check after an epoch"):
        checks = [probe.measure(evaluator, check.count, request.accuracy.middle) for evaluator in evaluators]
    costs = {}
    for key, chosen in spec.evaluate.items():
        options: EvaluateOptions | None = chosen.options
        images = check.data.sizes["test"] if options is None or options.examples is None else options.examples
        with fitting(f"evaluation {key}"):
            costs[key] = probe.measure(instantiate(chosen), images, request.accuracy_in(key).middle)
    return checks, costs


def _described(cost: EvaluationCost, accuracy: Bounds) -> EvaluationPlan:
    return EvaluationPlan(
        images=cost.images,
        survivors=accuracy if cost.stages else None,
        passes=cost.passes(accuracy),
        seconds=cost.seconds(accuracy),
    )


def _memory(device: torch.device, free: int | None) -> Memory:
    return Memory(peak=peak_bytes(device), device=device_bytes(device), free=free)


def _too_large(spec: ExperimentSpec, device: torch.device, error: DoesNotFitError) -> str:
    half = max(1, spec.train.batch_size // 2)
    is_update = error.stage == _UPDATE
    stage = f"an update of {spec.train.batch_size} images" if is_update else error.stage
    smaller = f"train.batch_size={half}, train.precision=bf16" if is_update else "a smaller batch_size for it"
    return f"does not fit: {stage} ran out of memory on {device} ({error.reason}); try {smaller} or a narrower network"


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
