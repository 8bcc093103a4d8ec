"""Estimate the cost of every row of a sweep."""

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from robustcli.store.runs import RunFolder, folder_of
from robustcli.workflows.plan.plan import Request, plan
from robustcli.workflows.plan.result import RowPlan
from robustcli.workflows.sweep_spec import Row


def plan_rows(
    rows: Sequence[Row], updates: int, robust: tuple[float, float] | None, runs: Path | None = None
) -> Iterator[tuple[str, RowPlan | None]]:
    """Yield the name of each row with None before it is measured, and with its plan afterwards.

    Every row is measured in its own process, so that its memory is measured separately; with `runs`, all are measured
    in this one, which saves the start of a process for every row. Seeds of a row cost the same.

    Args:
        updates: number of updates to measure.
        robust: bounds of the robust accuracy to assume; see `plan.Request`.
        runs: folder of runs. If given, the status of each seed is found in it.
    """
    requests = [Request(spec=row.specs[0], updates=updates, robust=robust, savings=False) for row in rows]
    if runs is not None:
        for row, request in zip(rows, requests, strict=True):
            yield row.name, None
            status = {str(folder.path): _status(folder) for folder in (folder_of(runs, spec) for spec in row.specs)}
            left = sum(not folder_of(runs, spec).is_finished for spec in row.specs)
            yield row.name, RowPlan(plan(request), len(row.specs), status, left)
        return
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for row, request in zip(rows, requests, strict=True):
            yield row.name, None
            yield row.name, RowPlan(pool.submit(plan, request).result(), len(row.specs))


def _status(folder: RunFolder) -> str:
    return folder.status() if folder.spec.exists() else "not started"
