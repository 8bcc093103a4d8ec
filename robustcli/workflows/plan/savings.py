"""Speed of updates in bf16, compiled, or both."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from robustcli.data.splits import Data
from robustcli.measuring.timing import Sample, Stopwatch, measure, speed, verdict
from robustcli.specs.spec import ExperimentSpec
from robustcli.workflows.plan.result import Saving
from robustcli.workflows.plan.updates import Trial, trial_folder

_UNCHANGED, _AGAIN = "unchanged", "unchanged, again"
_ROUNDS = 3
_BF16, _COMPILE = "train.precision=bf16", "train.compile=true"


def changes_of(spec: ExperimentSpec, *, with_compile: bool) -> dict[str, dict[str, Any]]:
    """Return settings to try, which the spec does not already have, by their overrides.

    Args:
        with_compile: try compilation too.
    """
    changes: dict[str, dict[str, Any]] = {}
    if spec.train.precision in ("auto", "fp32"):
        changes[_BF16] = {"precision": "bf16"}
    if with_compile and spec.train.compile is not True:
        changes[_COMPILE] = {"compile": True}
    if len(changes) == 2:
        changes[f"{_BF16} {_COMPILE}"] = {"precision": "bf16", "compile": True}
    return changes


def measure_savings(spec: ExperimentSpec, data: Data, device: torch.device, *, with_compile: bool) -> list[Saving]:
    """Return the speed of updates with each change as a multiple of the speed without it.

    A change is called faster or slower only if this holds in every round and exceeds the run-to-run variation.
    Compilation gets a row without a number unless it was requested.
    """
    changes = changes_of(spec, with_compile=with_compile)
    savings = []
    if changes:
        specs = {_UNCHANGED: spec, _AGAIN: spec}
        specs |= {name: replace(spec, train=replace(spec.train, **change)) for name, change in changes.items()}
        with ExitStack() as stack:
            samples = {
                name: _sample(changed, data, device, Path(stack.enter_context(trial_folder())))
                for name, changed in specs.items()
            }
            seconds = measure(samples, _ROUNDS)
        again = speed(seconds[_AGAIN], seconds[_UNCHANGED])
        for name in changes:
            found = speed(seconds[name], seconds[_UNCHANGED])
            savings.append(Saving(name, found, verdict(found, again)))
    if not with_compile and spec.train.compile is not True:
        savings.append(Saving(_COMPILE, None, "not measured (--compile)"))
    return savings


def _sample(spec: ExperimentSpec, data: Data, device: torch.device, folder: Path) -> Sample:
    trial = Trial(spec, data, device, folder, Stopwatch(device).now)
    return lambda repeats: mean(trial.run(repeats))
