"""`robust eval` with several models or attacks: one table. torch is imported inside it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from robustcli.cli.options import console, print_json

if TYPE_CHECKING:
    from robustcli.store.results import ModelRequest
    from robustcli.workflows.evaluate import Request
    from robustcli.workflows.evaluate_many import Cell


def print_table(
    request: "Request",
    models: "Sequence[ModelRequest]",
    attacks: Sequence[str],
    *,
    transfer: bool,
    as_json: bool,
    is_wide: bool,
) -> "list[Cell]":
    """Evaluate every model under every attack, print a table, and return its cells.

    Args:
        request: everything but the model and the attack.
        transfer: print transfer matrices.
        is_wide: also print where each evaluation is stored.
    """
    from robustcli.cli.progress import Screen
    from robustcli.evaluation.wording import warning_lines
    from robustcli.reports.evaluations import cost_lines, model_table, paired_lines, transfer_tables
    from robustcli.runtime.signals import stop_requests
    from robustcli.workflows.evaluate_many import assess_all

    with Screen(is_quiet=request.quiet) as watcher, stop_requests():
        cells = assess_all(
            request, models, attacks, watcher, lambda text: typer.echo(text, err=True), transfer=transfer
        )
    if as_json:
        found = [
            {"model": cell.model, "attack": cell.attack, "source": cell.source, "folder": str(cell.folder)}
            | {"results": cell.results.to_json()}
            for cell in cells
        ]
        print_json(found)
        return cells
    for table in transfer_tables(cells) if transfer else [model_table(cells)]:
        console().print(table)
    if request.budget is not None:
        for line in cost_lines(cells):
            typer.echo(line)
    if not transfer:
        for line in paired_lines(cells):
            typer.echo(line)
    notes = [
        f"{name}: {line}"
        for cell in cells
        for name, lines in ((cell.model, cell.results.notes), (cell.title, warning_lines(cell.results.evaluations)))
        for line in lines
    ]
    for line in dict.fromkeys(notes):
        typer.echo(f"note: {line}")
    if is_wide:
        for cell in cells:
            typer.echo(f"{cell.model}, {cell.attack or 'all evaluations'}: stored in {cell.folder}")
    elif cells:
        typer.echo(f"stored in {cells[0].folder.parent}; --wide shows the folders, which robust compare takes in pairs")
    return cells
