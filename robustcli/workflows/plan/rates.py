"""Estimate a run on another device, from what `robust plan --json` measured there."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from robustcli.data import Data
from robustcli.defenses import Defense
from robustcli.errors import RobustCliError
from robustcli.measuring.network_profile import profile_of
from robustcli.measuring.passes import Passes
from robustcli.registry.registry import instantiate
from robustcli.specs.settings import EvaluateOptions
from robustcli.specs.spec import ExperimentSpec
from robustcli.threat.threat import ThreatModel
from robustcli.training.check import Check
from robustcli.workflows.plan.evaluations import EvaluationCost, Probe
from robustcli.workflows.plan.images import images_of
from robustcli.workflows.plan.plan import Request, assumed_accuracy, passes_of_update
from robustcli.workflows.plan.result import Bounds, Plan

# Images that attacks are tried on to count their passes, which do not depend on the network.
_TRIED = 8


@dataclass(frozen=True)
class DeviceRates:
    """Multiply-accumulates per second of a device in training and in evaluations.

    Args:
        device: name of the device.
        spec: name of the spec that was measured there.
        evaluation: None if nothing was evaluated there.
    """

    device: str
    spec: str
    training: float
    evaluation: float | None

    @classmethod
    def read(cls, path: Path) -> "DeviceRates":
        """Read the output of `robust plan SPEC --json` of another device.

        Raises:
            RobustCliError: the file cannot be read, holds something else, or the spec did not fit into memory there.
        """
        try:
            plan = Plan.of_json(json.loads(path.read_text(encoding="utf-8")))
            if plan.training is None or plan.passes_per_image is None:
                raise ValueError
            work = plan.macs * _work(plan.passes_per_image)
            return cls(
                device=plan.machine["provenance"]["device"],
                spec=plan.name,
                training=work * plan.training.batch_size / plan.training.update,
                evaluation=_rate_of_evaluations(plan),
            )
        except FileNotFoundError as error:
            raise RobustCliError(f"--device-rates: there is no file {path}") from error
        except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
            raise RobustCliError(
                f"--device-rates: {path}: not a plan that was measured; on the other device, run robust plan SPEC "
                f"--json > {path.name} with a spec that fits into its memory"
            ) from error


@dataclass(frozen=True)
class Estimate:
    """Estimated seconds of a run on another device.

    Args:
        check: all checks after epochs.
    """

    rates: DeviceRates
    name: str
    macs: int
    updates: int
    training: float
    check: Bounds
    evaluations: dict[str, Bounds]
    notes: list[str]

    @property
    def seconds(self) -> Bounds:
        """The whole run."""
        return sum(self.evaluations.values(), Bounds(self.training, self.training) + self.check)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "device": self.rates.device,
            "measured_with": self.rates.spec,
            "name": self.name,
            "macs": self.macs,
            "updates": self.updates,
            "training_seconds": self.training,
            "check_seconds": vars(self.check),
            "evaluation_seconds": {key: vars(found) for key, found in self.evaluations.items()},
            "seconds": vars(self.seconds),
            "notes": self.notes,
        }


def estimate(request: Request, rates: DeviceRates) -> Estimate:
    """Estimate a run from its multiply-accumulates and passes, and the rates of the device; nothing is timed here.

    Raises:
        RobustCliError: the images are missing, or the network has no convolution.
    """
    spec = request.spec
    data, replaced = images_of(spec, torch.device("cpu"))
    macs = profile_of(spec.architecture, data.shape).macs
    passes = passes_of_update(spec, data)
    if passes is None:
        raise RobustCliError("--device-rates: passes are counted at convolutions, and this network has none")
    defense: Defense = instantiate(spec.defense)
    in_epoch = data.sizes["train"] / spec.train.batch_size
    updates = math.floor(in_epoch) if spec.train.drop_last else math.ceil(in_epoch)
    updates *= spec.train.epochs * defense.replays
    training = updates * spec.train.batch_size * macs * _work(passes) / rates.training
    check, evaluations, notes = Bounds(0.0, 0.0), {}, [*([replaced] if replaced else [])]
    if rates.evaluation is None:
        notes.append(f"{rates.spec} was evaluated by no attack there, so evaluations are not estimated")
    else:
        of_a_pass = macs / rates.evaluation
        probe = _probe(spec, data)
        checks, costs = _costs(request, probe, data)
        check = sum((_passes(cost, Bounds(0.3, 0.6)) for cost in checks), check) * (of_a_pass * spec.train.epochs)
        evaluations = {key: _passes(cost, assumed_accuracy(request, key)) * of_a_pass for key, cost in costs.items()}
    notes.append(
        f"from rates of {rates.spec} on {rates.device}: networks and batches of other sizes reach other rates, often "
        "lower ones if they are smaller; starts and files are not included"
    )
    return Estimate(rates, spec.name, macs, updates, training, check, evaluations, notes)


def _probe(spec: ExperimentSpec, data: Data) -> Probe:
    """What counts the passes of attacks, on a tiny network."""
    x, _ = data.evaluation("test", min(_TRIED, data.sizes["test"]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.Linear(16 * data.shape.channels, data.shape.classes)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), layer).eval().requires_grad_(False)
    return Probe(network, x, ThreatModel(spec.threat.norm, spec.threat.eps))


def _costs(request: Request, probe: Probe, data: Data) -> tuple[list[EvaluationCost], dict[str, EvaluationCost]]:
    """The costs of the check after an epoch and of every evaluation, counted in passes."""
    spec = request.spec
    check = Check(spec.train, instantiate(spec.defense), data, probe.threat)
    checks = [probe.measure(evaluator, check.count, 0.5) for evaluator in check.evaluators.values()]
    costs = {}
    for key, chosen in spec.evaluate.items():
        options: EvaluateOptions | None = chosen.options
        images = data.sizes["test"] if options is None or options.examples is None else options.examples
        costs[key] = probe.measure(instantiate(chosen), images, assumed_accuracy(request, key).middle)
    return checks, costs


def _passes(cost: EvaluationCost, robust: Bounds) -> Bounds:
    """Passes of one image in a whole evaluation, by the rule for its seconds."""
    counted = replace(
        cost,
        clean=1.0,
        stages=tuple(replace(stage, seconds=stage.forwards + stage.gradients) for stage in cost.stages),
    )
    return Bounds(counted.seconds(robust.low), counted.seconds(robust.high))


def _work(passes: Passes) -> float:
    """Passes in units of a forward pass; the gradient of the weights counts as two."""
    return passes.forwards + passes.input_gradients + 2 * passes.weight_gradients


def _rate_of_evaluations(plan: Plan) -> float | None:
    """Median rate of the evaluations that attack."""
    found = []
    for one in plan.evaluations.values():
        if one.survivors is None:
            continue
        robust, passes = one.survivors.low, one.passes_per_survivor
        # One pass when clean, which both numbers include.
        survivor = passes.forwards + passes.gradients - 1
        broken = (one.passes_per_broken_image or 1) - 1
        count = one.images * (1 + robust * survivor + (1 - robust) / 2 * broken)
        found.append(plan.macs * count / one.seconds.low)
    return median(found) if found else None
