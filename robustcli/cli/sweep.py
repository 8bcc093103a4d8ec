"""The command `robust sweep`, and grids of `robust train`. torch is imported inside them."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustcli.cli import panels
from robustcli.cli.cluster import Cpus, EngineName, Gpus, Partition, TimeLimit, engine_of, print_end
from robustcli.cli.options import Json, Overrides, Quiet, Runs, print_json, print_warnings
from robustcli.cli.plan import print_plan_of_sweep
from robustcli.errors import RobustCliError
from robustcli.specs import experiments

if TYPE_CHECKING:
    from robustcli.workflows.engines import Engine, Needs
    from robustcli.workflows.sweep_spec import Sweep

# Updates measured for each row of a dry run.
_UPDATES = 5

app = typer.Typer()


@app.command("sweep", rich_help_panel=panels.EXPERIMENTS)
def run(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="File or name of a sweep, or of a spec if values make a grid.")
    ],
    overrides: Overrides = None,
    row: Annotated[list[str] | None, typer.Option(help="Row to run; may be repeated. Default: all rows.")] = None,
    runs: Runs = Path("runs"),
    into: Annotated[
        Path | None, typer.Option(help="Replace the block <!-- NAME OF THE SWEEP --> of this file.")
    ] = None,
    engine: EngineName = "local",
    partition: Partition = None,
    time: TimeLimit = None,
    gpus: Gpus = None,
    cpus: Cpus = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Train nothing; list the rows and estimate their hours.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train and evaluate every row of a sweep and print one table.

    Several values make a grid: `robust sweep SPEC seed=0,1,2 defense.beta=1,3,6` has three rows with three seeds each,
    and 0..4 is a range. A value in brackets or quotes is one value, such as "data.mean=[0.5, 0.5, 0.5]".

    Finished rows are read from disk, interrupted rows are resumed, and rows in use by another process are skipped. Run
    the same command again to resume, or several times at once to share the work. If the training of a row fails, the
    table says so, the other rows continue, and the exit code is 4.

    --engine ray and --engine slurm run every row and seed as a separate task or job; all machines share the folder of
    runs.
    """
    from robustcli.workflows.sweep_spec import Sweep

    chosen = engine_of(engine, partition, time, gpus, cpus)
    sweep = Sweep.read(experiments.find(file), overrides or (), row or ())
    if dry_run:
        if into is not None:
            raise RobustCliError("--into: not with --dry-run, which trains nothing")
        print_plan_of_sweep(sweep, _UPDATES, None, runs=runs, as_json=as_json)
        if chosen is not None and not as_json:
            asked = Counter(chosen[1].text(spec.train.device) for row in sweep.rows for spec in row.specs)
            for needs, count in asked.items():
                typer.echo(f"--engine {engine}: {count} runs, each with {needs}")
        return
    run_sweep(sweep, runs, into=into, as_json=as_json, quiet=quiet, engine=chosen)


def run_sweep(
    sweep: "Sweep",
    runs: Path,
    *,
    into: Path | None = None,
    as_json: bool = False,
    quiet: bool,
    engine: "tuple[Engine, Needs] | None" = None,
) -> None:
    """Run the rows of a sweep and print its table; the exit code is 4 if the training of a row failed."""
    for chosen in sweep.rows:
        print_warnings(chosen.specs[0], f"row {chosen.name}: ")
    from robustcli.cli.progress import Screen
    from robustcli.reports.blocks import replace_block, require_block
    from robustcli.reports.sweep import markdown
    from robustcli.workflows.sweep import run_rows, run_rows_on, summary

    if into is not None:
        require_block(into, sweep.name)
    if engine is None:
        with Screen(is_quiet=quiet) as screen:
            outcomes = run_rows(sweep.rows, runs, screen, screen.title)
    else:
        report = (lambda task, answer: None) if quiet else print_end
        outcomes = run_rows_on(*engine, sweep.rows, runs, Screen, report)
    rows = [summary(chosen, outcomes[chosen.name], runs) for chosen in sweep.rows]
    if into is not None:
        replace_block(into, sweep.name, markdown(rows))
    elif not as_json:
        typer.echo(markdown(rows), nl=False)
    if as_json:
        print_json([found.to_json() for found in rows])
    failed = [found.row for found in rows if found.failures]
    if failed:
        typer.echo(f"training failed in {', '.join(failed)}", err=True)
        raise typer.Exit(4)
