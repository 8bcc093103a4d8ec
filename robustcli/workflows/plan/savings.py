"""Speed of updates with other settings: bf16, memory format, compilation."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from robustcli.data import Data
from robustcli.measuring.timing import Stopwatch, measure, speed, verdict
from robustcli.specs.spec import ExperimentSpec
from robustcli.workflows.plan.result import Saving
from robustcli.workflows.plan.updates import Trial, trial_folder

UNCHANGED, AGAIN = "unchanged", "unchanged, again"
_ROUNDS = 3
COMPILE = "train.compile=true"


def changes_of(
    spec: ExperimentSpec, *, is_last: bool, can_be_last: bool = True, with_compile: bool
) -> dict[str, dict[str, Any]]:
    """Return settings to try, which the spec does not already have, by their overrides.

    Args:
        is_last: the spec uses channels_last; if "auto" has chosen it, the other format is tried too.
        can_be_last: the network works in channels_last on this device.
        with_compile: try compilation too.
    """
    open_: dict[str, dict[str, Any]] = {}
    if can_be_last and not is_last:
        open_["train.channels_last=true"] = {"channels_last": True}
    if spec.train.precision in ("auto", "fp32"):
        open_["train.precision=bf16"] = {"precision": "bf16"}
    if len(open_) == 2:
        open_[" ".join(open_)] = {key: value for change in open_.values() for key, value in change.items()}
    if with_compile and spec.train.compile is not True:
        every = {key: value for change in open_.values() for key, value in change.items()}
        open_[COMPILE] = {"compile": True}
        if every:
            combined = " ".join(name for name in open_ if " " not in name)
            open_[combined] = {**every, "compile": True}
    # Not combined with the others.
    if is_last and spec.train.channels_last == "auto":
        open_["train.channels_last=false"] = {"channels_last": False}
    return open_


def not_measured(spec: ExperimentSpec, *, with_compile: bool) -> list[Saving]:
    """Return a row for compilation, which is only measured on request."""
    if with_compile or spec.train.compile is True:
        return []
    return [Saving(COMPILE, None, "not measured (--compile)")]


def measure_savings(
    spec: ExperimentSpec, data: Data, device: torch.device, changes: dict[str, dict[str, Any]]
) -> list[Saving]:
    """Return the speed of updates with each change as a multiple of the speed without it.

    A change is called faster or slower only if this holds in every round and exceeds the run-to-run variation.
    """
    if not changes:
        return []
    specs = {UNCHANGED: spec, AGAIN: spec}
    specs |= {name: replace(spec, train=replace(spec.train, **change)) for name, change in changes.items()}
    with ExitStack() as stack:
        trials = {
            name: Trial(changed, data, device, Path(stack.enter_context(trial_folder())), Stopwatch(device).now)
            for name, changed in specs.items()
        }
        seconds = measure({name: trial.sample for name, trial in trials.items()}, _ROUNDS)
    again = speed(seconds[AGAIN], seconds[UNCHANGED])
    speeds = {name: speed(seconds[name], seconds[UNCHANGED]) for name in changes}
    return [Saving(name, found, verdict(found, again)) for name, found in speeds.items()]
