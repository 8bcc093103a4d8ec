"""Estimate the cost of every row of a sweep."""

from collections.abc import Callable, Sequence
from pathlib import Path

from robustcli.store.runs import RunFolder, folder_of
from robustcli.workflows.plan.plan import Request, plan
from robustcli.workflows.plan.result import RowPlan
from robustcli.workflows.sweep_spec import Row


def plan_rows(
    rows: Sequence[Row],
    updates: int,
    robust: tuple[float, float] | None,
    runs: Path | None,
    begins: Callable[[str], None],
) -> dict[str, RowPlan]:
    """Return the plan of each row; seeds of a row cost the same.

    Args:
        updates: number of updates to measure.
        robust: bounds of the robust accuracy to assume; see `plan.Request`.
        runs: folder of runs. If given, the status of each seed is found in it.
        begins: called with the name of each row before it is measured.
    """
    found = {}
    for row in rows:
        begins(row.name)
        planned = plan(Request(spec=row.specs[0], updates=updates, robust=robust, savings=False))
        folders = [] if runs is None else [folder_of(runs, spec) for spec in row.specs]
        status = {str(folder.path): _status(folder) for folder in folders}
        left = sum(not folder.is_finished for folder in folders)
        found[row.name] = RowPlan(planned, len(row.specs), None if runs is None else status, left)
    return found


def _status(folder: RunFolder) -> str:
    return folder.status() if folder.spec.exists() else "not started"
