"""Results of one network as a table."""

from rich.table import Table

from robustcli.evaluation.wording import describe, interval, percent, threats_of, verdict
from robustcli.reports.tables import plain_table
from robustcli.store.results import Results

_COLUMNS = ("evaluation", "threat", "clean %", "robust % [95 %]", "verdict")
_WIDE = ("evaluator", "correct", "forwards", "gradients", "s")


def result_table(results: Results, *, is_wide: bool = False) -> Table:
    """One row per evaluation, with the clean accuracy next to every robust accuracy.

    Args:
        is_wide: also show evaluator, counts and cost.
    """
    has_certificates = any(evaluation.certified for evaluation in results.evaluations.values())
    columns = (*_COLUMNS[:-1], *(("certified %",) if has_certificates else ()), "verdict", *(_WIDE if is_wide else ()))
    table = plain_table(columns, text=("evaluation", "threat", "verdict", "evaluator"))
    for key, evaluation in results.evaluations.items():
        clean = results.clean_accuracy(key)
        cells = [
            key,
            "" if evaluation.is_clean else threats_of(evaluation),
            interval(evaluation) if evaluation.is_clean else "" if clean is None else percent(clean),
            "" if evaluation.is_clean else interval(evaluation),
        ]
        if has_certificates:
            cells.append("" if evaluation.certified is None else interval(evaluation.certified))
        cells.append(verdict(evaluation))
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
