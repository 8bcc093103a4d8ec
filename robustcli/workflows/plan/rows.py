"""Estimate the cost of every row of a sweep."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from robustcli.store.runs import folder_of
from robustcli.workflows.plan.plan import Request, plan
from robustcli.workflows.sweep_spec import Row


def plan_rows(
    rows: Sequence[Row], updates: int, robust: tuple[float, float] | None, runs: Path | None = None
) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Yield the name of each row with None before it is measured, and with its plan afterwards.

    Every row is measured in its own process, so that its memory is measured separately; with `runs`, all are measured
    in this one, which saves the start of a process for every row. Seeds of a row cost the same.

    Args:
        updates: number of updates to measure.
        robust: bounds of the robust accuracy to assume; see `plan.Request`.
        runs: folder of runs. If given, every plan has the folder and the status of each seed under `runs`, and the
            number of seeds without results under `left`.
    """
    requests = [Request(spec=row.specs[0], updates=updates, robust=robust, savings=False) for row in rows]
    if runs is not None:
        for row, request in zip(rows, requests, strict=True):
            yield row.name, None
            yield row.name, {"seeds": len(row.specs), **plan(request), **_status(row, runs)}
        return
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for row, request in zip(rows, requests, strict=True):
            yield row.name, None
            yield row.name, {"seeds": len(row.specs), **pool.submit(plan, request).result()}


def _status(row: Row, runs: Path) -> dict[str, Any]:
    folders = [folder_of(runs, spec) for spec in row.specs]
    status = [folder.status() if folder.spec.exists() else "not started" for folder in folders]
    return {
        "runs": dict(zip((str(folder.path) for folder in folders), status, strict=True)),
        "left": sum(not folder.is_finished for folder in folders),
    }
