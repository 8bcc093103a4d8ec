"""The command `robust plan`. torch is imported inside it."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustcli.cli import panels
from robustcli.cli.options import Json, Overrides, console, print_json, print_warnings
from robustcli.errors import RobustCliError
from robustcli.specs import experiments

if TYPE_CHECKING:
    from robustcli.workflows.plan.rates import Estimate
    from robustcli.workflows.plan.result import Plan
    from robustcli.workflows.sweep_spec import Sweep

app = typer.Typer()

# Seconds of a measurement that is announced.
_LONG = 60


@app.command("plan", rich_help_panel=panels.EXPERIMENTS)
def plan_run(
    name: Annotated[str, typer.Argument(metavar="SPEC", help="File of a spec or sweep, or name of a shipped one.")],
    overrides: Overrides = None,
    updates: Annotated[int, typer.Option(min=3, help="Number of updates to measure.")] = 20,
    robust: Annotated[
        str | None,
        typer.Option(
            help="Robust accuracy to assume, which determines the cost of attacks: a fraction such as 0.5, or a range "
            "such as 0.3-0.6. Default: the spec's claim, or 0.3-0.6."
        ),
    ] = None,
    is_compiled: Annotated[
        bool, typer.Option("--compile", help="Also measure compilation; takes a minute or more.")
    ] = False,
    rates: Annotated[
        Path | None,
        typer.Option(
            "--device-rates",
            help="Estimate for another device: file with the output of `robust plan SPEC --json` on that device. "
            "Nothing is measured here.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Estimate the cost of a run: hours of training, hours of every evaluation, and memory.

    Measures some real updates and some steps of each attack, and what bf16 would save. Nothing is stored. If the images
    of a known data set are missing, random images replace them. For a sweep, every row is one line, without memory and
    savings.
    """
    from rich.console import Console

    from robustcli.specs.grid import read_grid
    from robustcli.specs.spec import ExperimentSpec
    from robustcli.workflows.sweep_spec import Sweep, is_sweep

    share = None if robust is None else _share(robust)
    begun = time.perf_counter()
    path = experiments.find(name)
    if is_sweep(path) or read_grid(overrides or ()).is_grid:
        for option, is_given in (("--compile", is_compiled), ("--device-rates", rates is not None)):
            if is_given:
                raise RobustCliError(f"{option}: supports only a single spec, not a sweep")
        print_plan_of_sweep(Sweep.read(path, overrides or ()), updates, share, as_json=as_json)
        return
    spec = ExperimentSpec.read(path, overrides or ())
    print_warnings(spec)
    if rates is None:
        # Before the import of torch, which takes seconds.
        typer.echo(f"measuring {spec.name}: updates, passes of the network, and attacks", err=True)
    from robustcli.workflows.plan.plan import Request, plan
    from robustcli.workflows.plan.rates import DeviceRates, estimate

    startup = time.perf_counter() - begun
    found: Plan | Estimate
    screen = Console(stderr=True)
    with screen.status(f"measuring {spec.name}") as status:

        def begins(part: str) -> None:
            status.update(f"measuring {spec.name}: {part}")
            if not screen.is_terminal:
                typer.echo(f"measuring {part}", err=True)

        request = Request(
            spec=spec,
            updates=updates,
            robust=share,
            compile=is_compiled,
            startup=startup,
            announce=_announce,
            begins=begins,
        )
        found = plan(request) if rates is None else estimate(request, DeviceRates.read(rates))
    if as_json:
        print_json(found.to_json())
    else:
        _print_plan(spec.name, found)


def _print_plan(name: str, found: "Plan | Estimate") -> None:
    """Print what was measured here, or estimated for another device."""
    from robustcli.reports.plan import estimate_table, lines_of, tables_of
    from robustcli.workflows.plan.result import Plan

    if isinstance(found, Plan):
        tables, lines = tables_of(found), lines_of(found)
    else:
        typer.echo(f"{name} on {found.device}, estimated")
        tables, lines = [estimate_table(found)], [f"note: {note}" for note in found.notes]
    for table in tables:
        console().print(table)
    for line in lines:
        console().print(line, highlight=False, markup=False, soft_wrap=True)


def print_plan_of_sweep(
    sweep: "Sweep", updates: int, share: tuple[float, float] | None, *, runs: Path | None = None, as_json: bool
) -> None:
    """Measure every row of a sweep and print their costs.

    Args:
        runs: folder of runs; finished seeds in it are not counted as left. None: say nothing about it.
    """
    count = f"{len(sweep.rows)} row{'s' * (len(sweep.rows) != 1)}"
    # Before the import of torch, which takes seconds.
    typer.echo(f"measuring {count} of {sweep.name}", err=True)
    from robustcli.reports.plan import sweep_table
    from robustcli.workflows.plan.rows import plan_rows

    rows = plan_rows(sweep.rows, updates, share, runs, lambda row: typer.echo(f"measuring {row} ...", err=True))
    if as_json:
        print_json({name: found.to_json() for name, found in rows.items()})
    else:
        console().print(sweep_table(sweep.name, rows))


def _announce(seconds: float) -> None:
    """Warn of a measurement that takes long."""
    if seconds >= _LONG:
        from robustcli.evaluation.wording import duration

        typer.echo(
            f"note: measuring takes about {duration(seconds)} on this CPU, and the attacks of evaluations more; "
            "--updates 3 measures fewer, and --device-rates FILE estimates for another device without measuring",
            err=True,
        )


def _share(text: str) -> tuple[float, float]:
    """Parse "0.5" or "0.3-0.6" into lower and upper bound."""
    words = text.split("-")
    try:
        bounds = [float(word) for word in words]
    except ValueError:
        bounds = []
    if len(bounds) not in (1, 2) or not all(0 <= bound <= 1 for bound in bounds) or bounds != sorted(bounds):
        raise RobustCliError(f"--robust: '{text}' is not a fraction of images; write 0.5, or 0.3-0.6 for a range")
    return bounds[0], bounds[-1]
