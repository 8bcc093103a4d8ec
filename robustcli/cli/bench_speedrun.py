"""The command `robust bench speedrun`. torch is imported inside it."""

from pathlib import Path
from typing import Annotated

import typer

from robustcli.cli.options import Json, Out, Overrides, Quiet, Runs, print_json
from robustcli.specs import experiments

app = typer.Typer()


@app.command()
def speedrun(
    file: Annotated[str, typer.Argument(metavar="FILE", help="File or name of a sweep.")],
    overrides: Overrides = None,
    budget: Annotated[
        str, typer.Option(help="Processor time of each training, all cores together: 40m, 90s or 1h.")
    ] = "40m",
    row: Annotated[list[str] | None, typer.Option(help="Row to run; may be repeated. Default: all rows.")] = None,
    runs: Runs = Path("runs"),
    as_json: Json = False,
    quiet: Quiet = False,
    out: Out = None,
) -> None:
    """Compare methods that get the same processor time for training.

    Measures a few updates of each row, chooses the number of epochs that fits the budget, trains with every seed and
    evaluates. A training that uses up the budget before its end does not count: it starts again with fewer epochs.
    The time of evaluations is not counted. Run the same command again to continue; finished runs are read. Let
    nothing else run on the machine.
    """
    from robustcli.cli.progress import Screen
    from robustcli.measuring.machine import circumstances
    from robustcli.runtime.device import choose_device
    from robustcli.store.files import write_json
    from robustcli.workflows.speedrun import Speedrun, parse_budget, run_speedrun, table

    seconds = parse_budget(budget)
    with Screen(is_quiet=quiet) as screen:
        results = run_speedrun(
            experiments.find(file),
            overrides or (),
            row or (),
            seconds,
            runs,
            screen,
            lambda text: typer.echo(text, err=True),
        )
    found = Speedrun(**vars(circumstances(choose_device("cpu"))), budget_seconds=seconds, rows=results)
    if out is not None:
        write_json(out, found.to_json())
    if as_json:
        print_json(found.to_json())
        return
    typer.echo(table(results), nl=False)
    typer.echo(f"\n{found.describe()}; budget {budget} of processor time for each training")
