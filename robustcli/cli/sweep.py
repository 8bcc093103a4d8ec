"""The command `robust sweep`. torch is imported inside it."""

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
    file: Annotated[str, typer.Argument(metavar="FILE", help="File of a sweep, or name of a shipped sweep.")],
    overrides: Overrides = None,
    row: Annotated[list[str] | None, typer.Option(help="Row to run; may be repeated. Default: all rows.")] = None,
    runs: Runs = Path("runs"),
    into: Annotated[
        Path | None, typer.Option(help="Replace the block <!-- NAME OF THE SWEEP --> of this file.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train and evaluate every row of a sweep and print one table.

    Finished rows are read from disk, interrupted rows are resumed, and rows in use by another process are skipped. Run
    the same command again to resume, or several times at once to share the work. If the training of a row fails, the
    table says so, the other rows continue, and the exit code is 4.
    """
    sweep = Sweep.read(experiments.find(file), overrides or (), row or ())
    for chosen in sweep.rows:
        for warning in chosen.specs[0].warnings():
            typer.echo(f"warning: row {chosen.name}: {warning}", err=True)
    from robustcli.cli.progress import Screen
    from robustcli.reports.blocks import replace_block, require_block
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
        typer.echo(json.dumps([found.to_json() for found in rows], indent=2))
    failed = [found.row for found in rows if found.failures]
    if failed:
        typer.echo(f"training failed in {', '.join(failed)}", err=True)
        raise typer.Exit(4)
