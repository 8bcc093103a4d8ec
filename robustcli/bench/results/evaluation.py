"""Stored result of `robust bench eval`."""

from typing import Literal

from robustcli.bench.results.bases import SubjectBench, TimedBench, TimedRow
from robustcli.store.models import Stored


class EvaluationPasses(Stored):
    """Passes for one image; weight gradients are None if they were not counted."""

    forwards: float
    gradients: float
    weight_gradients: float | None


class EvaluationRow(TimedRow):
    """One implementation of an evaluation; `robust` is the number of surviving images."""

    robust: int | None
    passes: EvaluationPasses


class EvaluationBench(SubjectBench, TimedBench):
    """Result of `robust bench eval`."""

    block = "evaluation speed"

    bench: Literal["evaluation"] = "evaluation"
    attack: str
    notes: list[str]
    rows: list[EvaluationRow]
