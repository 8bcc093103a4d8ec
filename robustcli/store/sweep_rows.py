"""Typed rows of a sweep, for `robust sweep --json` and its table."""

from typing import Annotated, Any

from pydantic import Field

from robustcli.store.evaluations import Evaluation, Threat
from robustcli.store.models import Count, Radius, Stored
from robustcli.store.passes import Passes


class SweepEvaluation(Stored):
    """The part of an evaluation that the table of a sweep shows."""

    evaluator: str
    norm: str
    eps: Radius
    correct: Count
    total: Count
    accuracy: float
    interval: Annotated[tuple[float, float], Field(strict=False)]
    parameters: dict[str, Any]
    warnings: list[str]
    suspicions: list[str] = Field(default_factory=list)

    @classmethod
    def of(cls, evaluation: Evaluation) -> "SweepEvaluation":
        """Shorten an evaluation."""
        kept = evaluation.model_dump(include=set(cls.model_fields))
        return cls.model_validate({**kept, "suspicions": evaluation.suspicions or []})


class SweepRow(Stored):
    """One row of a sweep with all its seeds, as `robust sweep --json` prints it.

    Args:
        row: name of the row.
        seeds: seeds with results; `collapsed_at` and the lists of `evaluations` are in their order.
        failures: reasons of seeds without results.
        passes: passes of one update in the last epoch.
        parameters, macs: size of the network; multiply-accumulates of a forward pass of one image.
        training_flops: floating-point operations of the network's passes in one training, two for each
            multiply-accumulate.
        best_minus_last: robust accuracy of the best minus that of the last epoch, on the check's images.
        runs: folder of every seed.
    """

    row: str
    threat: Threat
    epochs: int
    seeds: list[int]
    failures: dict[str, str]
    collapsed_at: list[int | None]
    evaluations: dict[str, list[SweepEvaluation]]
    passes: Passes | None
    parameters: int | None = None
    macs: int | None = None
    training_flops: float | None = None
    images_per_second: float | None
    best_minus_last: float | None
    runs: list[str]
