"""What another way of making the same passes would save: bf16, the memory format, compiling."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from robustcli.data import Data
from robustcli.measuring.rounds import Sample, measure, speed, verdict
from robustcli.specs.spec import ExperimentSpec
from robustcli.workflows.plan.updates import Trial, trial_folder

AS_IT_IS, AGAIN = "as the spec says", "as the spec says, again"
_ROUNDS = 3


COMPILE = "train.compile=true"


def changes_of(spec: ExperimentSpec, *, is_last: bool, with_compile: bool) -> dict[str, dict[str, Any]]:
    """By their names, what could be changed that the spec does not say already.

    Args:
        is_last: the memory format that the spec comes to; what "auto" has chosen is checked against the other one.
    """
    open_: dict[str, dict[str, Any]] = {}
    if not is_last:
        open_["train.channels_last=true"] = {"channels_last": True}
    if spec.train.precision == "fp32":
        open_["train.precision=bf16"] = {"precision": "bf16"}
    if len(open_) == 2:
        open_[" ".join(open_)] = {key: value for change in open_.values() for key, value in change.items()}
    if with_compile and not spec.train.compile:
        every = {key: value for change in open_.values() for key, value in change.items()}
        open_[COMPILE] = {"compile": True}
        if every:
            words = " ".join(name for name in open_ if " " not in name)
            open_[words] = {**every, "compile": True}
    # The way back is no part of what is combined.
    if is_last and spec.train.channels_last == "auto":
        open_["train.channels_last=false"] = {"channels_last": False}
    return open_


def not_measured(spec: ExperimentSpec, *, with_compile: bool) -> list[dict[str, Any]]:
    """The row of what is tried on request alone."""
    if with_compile or spec.train.compile:
        return []
    return [{"change": COMPILE, "speed": None, "verdict": "not measured (--compile)"}]


def measure_savings(
    spec: ExperimentSpec, data: Data, device: torch.device, changes: dict[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """Speed of updates with each change as a multiple of that without, in turn, round by round.

    A change is called faster or slower only where every round says so and by more than the same updates differ from
    themselves.
    """
    if not changes:
        return []
    specs = {AS_IT_IS: spec, AGAIN: spec}
    specs |= {name: replace(spec, train=replace(spec.train, **change)) for name, change in changes.items()}
    with ExitStack() as stack:
        trials = {
            name: Trial(changed, data, device, Path(stack.enter_context(trial_folder())))
            for name, changed in specs.items()
        }
        samples: dict[str, Sample] = {name: _sample(trial) for name, trial in trials.items()}
        seconds = measure(samples, _ROUNDS)
    return [_row(name, seconds) for name in changes]


def _sample(trial: Trial) -> Sample:
    def sample(repeats: int) -> float:
        found = trial.sample(repeats)
        return found.cpu if trial.device.type == "cpu" else found.wall

    return sample


def _row(name: str, seconds: dict[str, Sequence[float]] | dict[str, list[float]]) -> dict[str, Any]:
    found = speed(seconds[name], seconds[AS_IT_IS])
    again = speed(seconds[AGAIN], seconds[AS_IT_IS])
    return {"change": name, "speed": asdict(found), "verdict": verdict(found, again)}
