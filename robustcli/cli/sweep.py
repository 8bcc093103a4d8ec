"""The command `robust sweep`: parse, call, print. torch is imported inside it."""

import json
from pathlib import Path
from typing import Annotated

import typer

from robustcli.cli.options import Json, Overrides, Quiet, Runs
from robustcli.specs import experiments
from robustcli.workflows.sweep_spec import Sweep

app = typer.Typer()


@app.command("sweep")
def run(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A sweep's file, or the name of a shipped one.")],
    overrides: Overrides = None,
    row: Annotated[list[str] | None, typer.Option(help="May be repeated; all rows if left out.")] = None,
    runs: Runs = Path("runs"),
    into: Annotated[
        Path | None, typer.Option(help="Replace the block <!-- NAME OF THE SWEEP --> of this file.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train and evaluate every row of a sweep, one after the other, and tell all in one table.

    Rows that are done are read, one that was killed goes on, one that another process has is left to it: the same
    command continues, and run twice at once it shares the work. A row that fails in training says so in the table;
    the others go on, and the exit code is 4.
    """
    sweep = Sweep.read(experiments.find(file), overrides or (), row or ())
    for chosen in sweep.rows:
        for warning in chosen.specs[0].warnings():
            typer.echo(f"warning: row {chosen.name}: {warning}", err=True)
    from robustcli.cli.progress import Screen
    from robustcli.reports.runs import replace_block, require_block
    from robustcli.reports.sweep import markdown
    from robustcli.workflows.sweep import run_rows, summary

    if into is not None:
        require_block(into, sweep.name)
    with Screen(is_quiet=quiet) as screen:
        outcomes = run_rows(sweep.rows, runs, screen)
    rows = [summary(chosen, outcomes[chosen.name], runs) for chosen in sweep.rows]
    if into is not None:
        replace_block(into, sweep.name, markdown(rows))
    elif not as_json:
        typer.echo(markdown(rows), nl=False)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    failed = [found["row"] for found in rows if found["failures"]]
    if failed:
        typer.echo(f"training failed in {', '.join(failed)}", err=True)
        raise typer.Exit(4)
