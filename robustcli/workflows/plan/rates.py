"""Estimate a run on another device, from what `robust plan --json` measured there."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from robustcli.data import Data
from robustcli.defenses import Defense
from robustcli.errors import RobustCliError
from robustcli.measuring.network_profile import profile_of
from robustcli.registry.registry import instantiate
from robustcli.specs.spec import ExperimentSpec
from robustcli.threat.threat import ThreatModel
from robustcli.training.check import Check
from robustcli.workflows.plan.evaluations import Probe
from robustcli.workflows.plan.images import images_of
from robustcli.workflows.plan.plan import Request, measure_evaluations, passes_per_image
from robustcli.workflows.plan.result import Bounds, Plan

# Images that attacks are tried on to count their passes, which do not depend on the network.
_TRIED = 8


@dataclass(frozen=True)
class DeviceRates:
    """Multiply-accumulates per second of a device in training and in evaluations.

    Args:
        device: name of the device.
        spec: name of the spec that was measured there.
        evaluation: median of the evaluations that attack; None if nothing was attacked there.
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
            attacked = [found for found in plan.evaluations.values() if found.survivors is not None]
            rates = [plan.macs * found.passes.low / found.seconds.low for found in attacked]
            work = plan.macs * plan.passes_per_image.total
            return cls(
                device=plan.machine["provenance"]["device"],
                spec=plan.name,
                training=work * plan.training.batch_size / plan.training.update,
                evaluation=median(rates) if rates else None,
            )
        except FileNotFoundError as error:
            raise RobustCliError(f"--device-rates: there is no file {path}") from error
        except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
            raise RobustCliError(
                f"--device-rates: {path}: not a plan that was measured; on the other device, run robust plan SPEC "
                f"--json > {path.name} with a spec that fits into its memory"
            ) from error


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
    in_epoch = data.sizes["train"] / spec.train.batch_size
    updates = math.floor(in_epoch) if spec.train.drop_last else math.ceil(in_epoch)
    updates *= spec.train.epochs * defense.replays
    training = updates * spec.train.batch_size * macs * passes.total / rates.training
    check, evaluations, notes = Bounds(0.0, 0.0), {}, [*([replaced] if replaced else [])]
    if rates.evaluation is None:
        notes.append(f"{rates.spec} was evaluated by no attack there, so evaluations are not estimated")
    else:
        of_a_pass = macs / rates.evaluation
        probe = _probe(spec, data)
        checks, costs = measure_evaluations(request, probe, Check(spec.train, defense, data, probe.threat))
        check = sum((cost.passes(request.accuracy) for cost in checks), check) * (of_a_pass * spec.train.epochs)
        evaluations = {key: cost.passes(request.accuracy_in(key)) * of_a_pass for key, cost in costs.items()}
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


def _probe(spec: ExperimentSpec, data: Data) -> Probe:
    """Return a probe that counts the passes of attacks on a tiny network."""
    x, _ = data.evaluation("test", min(_TRIED, data.sizes["test"]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.Linear(16 * data.shape.channels, data.shape.classes)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), layer).eval().requires_grad_(False)
    return Probe(network, x, ThreatModel(spec.threat.norm, spec.threat.eps))
