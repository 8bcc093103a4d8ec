"""Estimate the time and memory of a run from a few real updates and short attacks."""

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import nn

from robustcli.attacks.crafting import evaluating
from robustcli.attacks.pgd import Pgd
from robustcli.data import Data
from robustcli.defenses import Defense
from robustcli.diagnostics.one_step import BESIDE_PGD
from robustcli.errors import RobustCliError
from robustcli.evaluation.evaluate import settled
from robustcli.evaluation.wording import duration
from robustcli.evaluators.attack import Attacked
from robustcli.measuring.machine import circumstances
from robustcli.measuring.memory import DoesNotFitError, device_bytes, fitting, free_bytes, peak_bytes
from robustcli.measuring.network_profile import network_profile, profile_of
from robustcli.measuring.passes import Passes, least_passes, passes_of
from robustcli.measuring.timing import wall
from robustcli.models.build import build_network
from robustcli.registry.registry import MemberSpec, instantiate
from robustcli.runtime.allocator import keep_freed_memory
from robustcli.runtime.device import choose_device
from robustcli.specs.settings import EvaluateOptions
from robustcli.specs.spec import ExperimentSpec
from robustcli.threat.threat import ThreatModel
from robustcli.training.choices import chosen_settings
from robustcli.training.model import breaks_in_channels_last, is_channels_last
from robustcli.workflows.plan.evaluations import BROKEN_PASSES, EvaluationCost, Probe
from robustcli.workflows.plan.images import images_of
from robustcli.workflows.plan.result import (
    AttackPasses,
    Bounds,
    EvaluationPlan,
    Images,
    Memory,
    Plan,
    Saving,
    TrainingPlan,
)
from robustcli.workflows.plan.savings import changes_of, measure_savings, not_measured
from robustcli.workflows.plan.updates import WARM_UP, Trial, measure_updates, trial_folder

# Images that evaluations are measured on, at most.
_PROBED = 1000
# Seconds of a pass that is long enough for a first estimate, and of one that is not repeated.
_QUICK, _SLOW = 0.2, 1.0
# Images of the smallest batch of a first estimate.
_LEAST = 2


@dataclass(frozen=True, kw_only=True)
class Request:
    """Options of `robust plan`.

    Args:
        spec: experiment.
        updates: number of updates to measure.
        robust: lower and upper bound of the robust accuracy to assume, between 0 and 1; None: the spec's claim, or 0.3
            to 0.6 without a claim.
        savings: measure bf16 and the memory format.
        compile: measure compilation too.
    """

    spec: ExperimentSpec
    updates: int = 20
    robust: tuple[float, float] | None = None
    savings: bool = True
    compile: bool = False


_GUESS = Bounds(0.3, 0.6)
_UPDATE = "an update"


def plan(request: Request, tell: Callable[[str], None] = lambda text: None) -> Plan:
    """Return the estimated cost of a run.

    Args:
        tell: called with a first estimate after a few passes, and with a better one after the updates.

    Raises:
        RobustCliError: the images or the device are missing, or a setting is invalid.
    """
    spec = request.spec
    # Import what the first optimizer of a training imports, so that the time to start includes it.
    importlib.import_module("torch._dynamo")
    program = time.process_time()
    device = choose_device(spec.train.device)
    before = wall(device)
    data, replaced = images_of(spec, device)
    keep_freed_memory()
    start = program + wall(device) - before
    # Before anything that takes long; an update that does not fit is reported below.
    with suppress(DoesNotFitError), fitting(_UPDATE):
        tell(_first_estimate(request, data, device))
    with torch.device("meta"):
        profile = network_profile(build_network(spec.architecture, data.shape, data.mean, data.std), data.shape)
    found = partial(
        Plan,
        machine=circumstances(device),
        name=spec.name,
        digest=spec.digest,
        images=Images(shape=data.shape.text, sizes=data.sizes, replaced=replaced),
        parameters=profile.parameters,
        macs=profile.macs,
        passes_per_image=_passes(spec, data),
    )
    spec = replace(spec, train=chosen_settings(spec, instantiate(spec.defense), data, device))
    request = replace(request, spec=spec)
    free = free_bytes(device)
    try:
        with trial_folder() as folder:
            training, after_updates, costs = _measured(request, data, device, Path(folder), tell)
    except DoesNotFitError as error:
        return found(memory=_memory(device), notes=[_too_large(spec, device, error)])
    guesses = {key: assumed_accuracy(request, key) for key in costs}
    evaluations = {key: _described(cost, guesses[key]) for key, cost in costs.items()}
    of_an_epoch = training.check + Bounds(training.epoch_end, training.epoch_end)
    once = start + training.seconds
    seconds = sum((found.seconds for found in evaluations.values()), Bounds(once, once) + of_an_epoch * training.epochs)
    memory = replace(_memory(device), after_updates=after_updates, free=free)
    notes = [*_too_large_later(costs, device), *_notes(spec, list(costs.values()))]
    savings: list[Saving] = []
    try:
        with fitting("other settings"):
            savings = _savings(request, data, device) if request.savings else []
    except DoesNotFitError:
        notes.append("other settings were not measured: two networks at once do not fit into memory")
    return found(
        memory=memory,
        notes=notes,
        start=start,
        training=training,
        evaluations=evaluations,
        savings=savings,
        seconds=seconds,
    )


def _savings(request: Request, data: Data, device: torch.device) -> list[Saving]:
    spec, with_compile = request.spec, request.compile
    with torch.device("meta"):
        network = build_network(spec.architecture, data.shape, data.mean, data.std)
    is_last = is_channels_last(network, spec.train, device)
    can_be_last = not breaks_in_channels_last(network, device)
    changes = changes_of(spec, is_last=is_last, can_be_last=can_be_last, with_compile=with_compile)
    return [*measure_savings(spec, data, device, changes), *not_measured(spec, with_compile=with_compile)]


def passes_of_update(spec: ExperimentSpec, data: Data) -> Passes | None:
    """Return the passes of an update for each image, as declared or else counted; None if they cannot be counted."""
    return declared_passes(spec) or _passes(spec, data)


def _passes(spec: ExperimentSpec, data: Data) -> Passes | None:
    """Return the passes of an update for each image; None if the network has no convolution."""
    try:
        return passes_of(spec, data.shape)
    except RobustCliError:
        return None


def _first_estimate(request: Request, data: Data, device: torch.device) -> str:
    """Return the time of training, from a few passes of the network and the declared number of passes, as text."""
    spec = request.spec
    passes = declared_passes(spec)
    if passes is None:
        return f"measuring {request.updates} updates ..."
    macs = profile_of(spec.architecture, data.shape).macs
    # A forward pass, and the gradients of images and weights.
    seconds = 3 * macs / _macs_per_second(device)
    if _LEAST * seconds < _SLOW:
        network = build_network(spec.architecture, data.shape, data.mean, data.std).to(device).train()
        seconds = _seconds_of_an_image(network, data, spec.train.batch_size, device)
    defense: Defense = instantiate(spec.defense)
    # Of the measured pass, the gradient of the weights counts as two forward passes.
    of_an_image = seconds / 3 * (passes.forwards + passes.input_gradients + 2 * passes.weight_gradients)
    training = of_an_image * data.sizes["train"] * defense.replays * spec.train.epochs
    measuring = of_an_image * spec.train.batch_size * (WARM_UP + request.updates)
    return (
        f"first estimate, from a few passes: training {duration(training)}; measuring {request.updates} "
        f"updates takes about {duration(measuring)} ..."
    )


def declared_passes(spec: ExperimentSpec) -> Passes | None:
    """Return the passes of one update as the defense declares them, for the number of steps in the spec."""
    weights = spec.defense.parameters.get("weights")
    passes = least_passes(spec.defense.name, weights.name if isinstance(weights, MemberSpec) else "none")
    known, steps = spec.defense.member.parameters.get("steps"), spec.defense.parameters.get("steps")
    if passes is None or known is None or not isinstance(known.default, int) or not isinstance(steps, int):
        return passes
    more = steps - known.default
    return replace(passes, forwards=passes.forwards + more, input_gradients=passes.input_gradients + more)


def _macs_per_second(device: torch.device) -> float:
    """Return the multiply-accumulates per second of a usual convolution, forwards and backwards.

    So networks that take seconds for two images get their first estimate at once, too.
    """
    layer, x = nn.Conv2d(64, 64, 3, padding=1, device=device), torch.rand((8, 64, 16, 16), device=device)
    x.requires_grad_()
    macs = x.numel() * 64 * 9
    repeats, seconds = 1, 0.0
    while True:
        # The first passes allocate memory and choose kernels; those that are long enough count.
        start = wall(device)
        for _ in range(repeats):
            torch.autograd.grad(layer(x).sum(), [x, *layer.parameters()])
        seconds = wall(device) - start
        if seconds > _QUICK:
            return 3 * macs * repeats / seconds
        repeats *= 4


def _seconds_of_an_image(network: nn.Module, data: Data, batch_size: int, device: torch.device) -> float:
    """Return the seconds of a forward and a backward pass, per image, in the largest batch that is quick enough."""
    x, y = data.evaluation("test", min(batch_size, data.sizes["test"]))
    images, seconds = _LEAST, 0.0
    while True:
        few = slice(0, min(images, len(x)))
        # The first pass of a size allocates memory and chooses kernels.
        for _ in range(2):
            start = wall(device)
            torch.autograd.grad(F.cross_entropy(network(x[few]), y[few]), [*network.parameters()], allow_unused=True)
            seconds = wall(device) - start
            if seconds > _SLOW:
                return seconds / len(x[few])
        if images >= len(x) or seconds > _QUICK:
            return seconds / len(x[few])
        images *= 4


def _measured(
    request: Request, data: Data, device: torch.device, folder: Path, tell: Callable[[str], None]
) -> tuple[TrainingPlan, int, dict[str, EvaluationCost]]:
    """Measure updates, the end of an epoch and evaluations.

    Returns:
        Training, the peak memory after the updates, and the cost of every evaluation.
    """
    spec = request.spec
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with fitting(_UPDATE):
        trial = Trial(spec, data, device, folder)
        updates = measure_updates(trial, request.updates)
    after_updates, update = peak_bytes(device), median(updates.seconds)
    tell(
        f"after {len(updates.seconds)} updates: training {duration(update * trial.updates)}; measuring the evaluations "
        "..."
    )
    check, costs = _evaluations(request, trial, data)
    robust = _bounds(request)
    training = TrainingPlan(
        updates=trial.updates,
        epochs=spec.train.epochs,
        batch_size=spec.train.batch_size,
        measured=len(updates.seconds),
        update=update,
        slowest=max(updates.seconds),
        seconds=update * trial.updates,
        epoch_end=updates.epoch_end,
        check=Bounds(*(sum(cost.seconds(share) for cost in check) for share in (robust.low, robust.high))),
        peak_bytes=updates.peak,
    )
    return training, after_updates, costs


def _evaluations(request: Request, trial: Trial, data: Data) -> tuple[list[EvaluationCost], dict[str, EvaluationCost]]:
    """Measure the evaluations of the check after an epoch, and each evaluation at the end."""
    spec = request.spec
    network, check = trial.training.network, trial.check()
    threat = ThreatModel(spec.threat.norm, spec.threat.eps)
    x, _ = data.evaluation("test", min(_PROBED, data.sizes["test"]))
    with evaluating(network), settled(network, x.device.type):
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        probe = Probe(network, x, threat)
        middle = _bounds(request).middle
        checks = [*check.evaluators.values()]
        if check.watches_one_step:
            # The check for catastrophic overfitting costs as much as PGD without early exit and with some more steps.
            checks.append(Attacked(attack=Pgd(steps=spec.train.check_steps + BESIDE_PGD)))
        with fitting("the check after an epoch"):
            checked = [probe.measure(evaluator, check.count, middle) for evaluator in checks]
        costs = {}
        for key, chosen in spec.evaluate.items():
            options: EvaluateOptions | None = chosen.options
            images = data.sizes["test"] if options is None or options.examples is None else options.examples
            with fitting(f"evaluation {key}"):
                costs[key] = probe.measure(instantiate(chosen), images, assumed_accuracy(request, key).middle)
    return checked, costs


def _bounds(request: Request) -> Bounds:
    return _GUESS if request.robust is None else Bounds(*request.robust)


def assumed_accuracy(request: Request, key: str) -> Bounds:
    """Return the assumed robust accuracy of an evaluation."""
    claimed: Mapping[str, float] = {} if request.spec.claim is None else request.spec.claim.metrics
    if request.robust is None and key in claimed:
        return Bounds(claimed[key], claimed[key])
    return _bounds(request)


def _described(cost: EvaluationCost, guess: Bounds) -> EvaluationPlan:
    broken = [stage.of_broken() * (stage.forwards + stage.gradients) for stage in cost.stages[:1]]
    return EvaluationPlan(
        images=cost.images,
        survivors=guess if cost.stages else None,
        passes_per_survivor=AttackPasses(*cost.passes()),
        passes_per_broken_image=1 + sum(broken) if broken else None,
        batch_size=cost.batch_size,
        peak_bytes=cost.peak,
        seconds=Bounds(cost.seconds(guess.low), cost.seconds(guess.high)),
    )


def _memory(device: torch.device) -> Memory:
    return Memory(peak=peak_bytes(device), device=device_bytes(device), is_resident_set=device.type == "cpu")


def _too_large(spec: ExperimentSpec, device: torch.device, error: DoesNotFitError) -> str:
    half = max(1, spec.train.batch_size // 2)
    is_update = error.stage == _UPDATE
    stage = f"an update of {spec.train.batch_size} images" if is_update else error.stage
    smaller = f"train.batch_size={half}, train.precision=bf16" if is_update else "a smaller batch_size for it"
    return f"does not fit: {stage} ran out of memory on {device} ({error.reason}); try {smaller} or a narrower network"


def _too_large_later(costs: Mapping[str, EvaluationCost], device: torch.device) -> list[str]:
    """Return a note for each evaluation whose batches need more memory than is free."""
    free = free_bytes(device)
    return [
        f"does not fit: evaluation {key} needs {cost.peak / 2**30:.1f} GiB for a batch of {cost.batch_size} images, "
        f"but {free / 2**30:.1f} GiB are free; try a smaller batch_size for it"
        for key, cost in costs.items()
        if free is not None and cost.peak > free
    ]


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
