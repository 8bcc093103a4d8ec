"""Results of one network, and the comparison with a claim -> tables."""

from dataclasses import dataclass

from rich.table import Table

from robustcli.evaluation.wording import describe, interval, percent, threats_of, verdict
from robustcli.reports.tables import plain_table
from robustcli.store.results import Claim, Results, RunResults

_COLUMNS = ("evaluation", "threat", "clean %", "robust % [95 %]", "verdict")
_WIDE = ("evaluator", "correct", "forwards", "gradients", "s")


def result_table(results: Results, *, is_wide: bool = False) -> Table:
    """One row per evaluation, with the clean accuracy next to every robust accuracy.

    Args:
        is_wide: also show evaluator, counts and cost.
    """
    columns = (*_COLUMNS, *(_WIDE if is_wide else ()))
    table = plain_table(columns, text=("evaluation", "threat", "verdict", "evaluator"))
    for key, evaluation in results.evaluations.items():
        clean = results.clean_accuracy(key)
        cells = [
            key,
            "" if evaluation.is_clean else threats_of(evaluation),
            interval(evaluation) if evaluation.is_clean else "" if clean is None else percent(clean),
            "" if evaluation.is_clean else interval(evaluation),
            verdict(evaluation),
        ]
        if is_wide:
            cells += [
                describe(evaluation),
                f"{evaluation.correct}/{evaluation.total}",
                f"{evaluation.forwards:,}",
                f"{evaluation.gradients:,}",
                f"{evaluation.seconds:.1f}",
            ]
        table.add_row(*cells)
    return table


@dataclass(frozen=True)
class Comparison:
    """A claimed accuracy next to the reproduced one.

    Args:
        claimed, got, low, high: fractions; low and high are the 95 % interval of got.
    """

    metric: str
    claimed: float
    got: float
    low: float
    high: float
    tolerance: float

    @property
    def gap(self) -> float:
        """Reproduced minus claimed accuracy."""
        return self.got - self.claimed

    @property
    def verdict(self) -> str:
        """Return "reproduced" if the claim lies within the tolerance of the interval, or the direction of the gap."""
        if self.low - self.tolerance <= self.claimed <= self.high + self.tolerance:
            return "reproduced"
        return "above the claim" if self.gap > 0 else "below the claim"


def compare_with_claim(results: RunResults, claim: Claim) -> list[Comparison]:
    """Compare a finished run with a claim, metric by metric."""
    compared = []
    for metric, claimed in claim.metrics.items():
        evaluation = results.evaluations[metric]
        low, high = evaluation.interval
        compared.append(Comparison(metric, claimed, evaluation.accuracy, low, high, claim.tolerance))
    return compared


def claim_table(results: RunResults, claim: Claim) -> Table:
    """Claimed and reproduced accuracy with interval, gap and verdict."""
    source = ", ".join(part for part in (claim.source, claim.table) if part)
    columns = ("metric", "claimed %", "got % [95 %]", "gap", "verdict")
    table = plain_table(columns, text=("metric", "verdict"), title=f"Claim of {source}")
    for row in compare_with_claim(results, claim):
        got = f"{percent(row.got)} [{percent(row.low)}, {percent(row.high)}]"
        table.add_row(row.metric, percent(row.claimed), got, f"{100 * row.gap:+.1f}", row.verdict)
    return table
