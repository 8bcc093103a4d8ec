"""Results of one network as a table."""

from rich.table import Table

from robustcli.evaluation.wording import describe, interval, percent, threats_of, verdict
from robustcli.reports.tables import plain_table
from robustcli.store.results import Results

_COLUMNS = ("evaluation", "threat", "clean %", "robust % [95 %]", "verdict")
_WIDE = ("evaluator", "correct", "forwards", "gradients", "s")


def result_table(results: Results, *, is_wide: bool = False) -> Table:
    """One row per evaluation, with the clean accuracy next to every robust accuracy; certified ones have a second row.

    Args:
        is_wide: also show evaluator, counts and cost.
    """
    columns = (*_COLUMNS, *(_WIDE if is_wide else ()))
    table = plain_table(columns, text=("evaluation", "threat", "verdict", "evaluator"))
    for key, evaluation in results.evaluations.items():
        cells = cells_of(results, key)
        if is_wide:
            cells += [
                describe(evaluation),
                f"{evaluation.correct}/{evaluation.total}",
                f"{evaluation.forwards:,}",
                f"{evaluation.gradients:,}",
                f"{evaluation.seconds:.1f}",
            ]
        table.add_row(*cells)
        if (proof := evaluation.certified) is not None:
            abstained = f", {proof.abstained} abstain" if proof.abstained else ""
            table.add_row("  certified", "", "", interval(proof), f"lower bound{abstained}")
    return table


def cells_of(results: Results, key: str) -> list[str]:
    """Return name, threat, clean accuracy, robust accuracy with interval, and verdict of an evaluation."""
    found, clean = results.evaluations[key], results.clean_accuracy(key)
    if found.is_clean:
        return [key, "", interval(found), "", verdict(found)]
    return [key, threats_of(found), "" if clean is None else percent(clean), interval(found), verdict(found)]
