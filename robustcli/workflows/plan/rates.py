"""Estimate a run on another device, from what `robust plan --json` measured there."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from robustcli.defenses import Defense
from robustcli.errors import RobustCliError
from robustcli.measuring.network_profile import profile_of
from robustcli.registry.registry import instantiate
from robustcli.threat.threat import ThreatModel
from robustcli.workflows.plan.evaluations import Probe
from robustcli.workflows.plan.images import images_of
from robustcli.workflows.plan.plan import Request, evaluation_costs, passes_per_image
from robustcli.workflows.plan.result import Bounds, Plan


@dataclass(frozen=True)
class DeviceRates:
    """Multiply-accumulates per second of a device in training and in evaluations.

    Args:
        device: name of the device.
        spec: name of the spec that was measured there.
    """

    device: str
    spec: str
    training: float
    evaluation: float

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
            work = plan.macs * plan.passes_per_image.total
            return cls(
                device=plan.machine.provenance.device,
                spec=plan.name,
                training=work * plan.training.batch_size / plan.training.update,
                evaluation=plan.macs / _seconds_per_pass(plan),
            )
        except FileNotFoundError as error:
            raise RobustCliError(f"--device-rates: there is no file {path}") from error
        except (ValueError, KeyError, TypeError, ZeroDivisionError, RecursionError) as error:
            raise RobustCliError(
                f"--device-rates: {path}: not a plan that was measured; on the other device, run robust plan SPEC "
                f"--json > {path.name} with a spec that fits into its memory"
            ) from error


def _seconds_per_pass(plan: Plan) -> float:
    """Return the seconds of a pass of one image in evaluations, with what attacks do in between."""
    attacked = [found for found in plan.evaluations.values() if found.survivors is not None]
    if not attacked:
        return plan.seconds_of_a_pass
    return sum(found.seconds.middle for found in attacked) / sum(found.passes.middle for found in attacked)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Estimated seconds of a run on another device.

    Args:
        device: name of the device.
        measured_with: name of the spec that was measured there.
        check_seconds: all checks after epochs.
        seconds: the whole run.
    """

    device: str
    measured_with: str
    name: str
    macs: int
    updates: int
    training_seconds: float
    check_seconds: Bounds
    evaluation_seconds: dict[str, Bounds]
    seconds: Bounds
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def estimate(request: Request, rates: DeviceRates) -> Estimate:
    """Estimate a run from its multiply-accumulates and passes, and the rates of the device; nothing is timed here.

    Raises:
        RobustCliError: the images are missing, or the network has no convolution.
    """
    spec = request.spec
    data, replaced = images_of(spec, torch.device("cpu"))
    macs = profile_of(spec.architecture, data.shape).macs
    passes = passes_per_image(spec, data)
    if passes is None:
        raise RobustCliError("--device-rates: passes are counted at convolutions, and this network has none")
    defense: Defense = instantiate(spec.defense)
    batches = data.steps_per_epoch(spec.train.batch_size, spec.train.drop_last)
    updates = batches * spec.train.epochs * defense.replays
    training = updates * spec.train.batch_size * macs * passes.total / rates.training
    of_a_pass = macs / rates.evaluation
    checks, costs = evaluation_costs(request, data, Probe.tiny(data, ThreatModel(spec.threat.norm, spec.threat.eps)))
    passes_of_check = sum((cost.passes(request.accuracy) for cost in checks), Bounds(0.0, 0.0))
    check = passes_of_check * (of_a_pass * spec.train.epochs)
    evaluations = {key: cost.passes(request.accuracy_in(key)) * of_a_pass for key, cost in costs.items()}
    notes = [] if replaced is None else [replaced]
    notes.append(
        f"from rates of {rates.spec} on {rates.device}: networks and batches of other sizes reach other rates, often "
        "lower ones if they are smaller; starts and files are not included"
    )
    return Estimate(
        device=rates.device,
        measured_with=rates.spec,
        name=spec.name,
        macs=macs,
        updates=updates,
        training_seconds=training,
        check_seconds=check,
        evaluation_seconds=evaluations,
        seconds=sum(evaluations.values(), Bounds(training, training) + check),
        notes=notes,
    )
