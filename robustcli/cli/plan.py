"""The command `robust plan`. torch is imported inside it."""

import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Annotated, Any

import typer
from rich.console import Console

from robustcli.cli.options import Json, Overrides, console
from robustcli.errors import RobustCliError
from robustcli.specs import experiments
from robustcli.specs.spec import ExperimentSpec
from robustcli.workflows.sweep_spec import Sweep, is_sweep

app = typer.Typer()


@app.command("plan")
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
    as_json: Json = False,
) -> None:
    """Estimate the cost of a run: hours of training, hours of every evaluation, and memory.

    Measures some real updates and some steps of each attack, and what bf16 and the memory format would save. Nothing is
    stored. If the images of a known data set are missing, random images replace them. For a sweep, every row is one
    line and alternatives are not measured.
    """
    share = None if robust is None else _share(robust)
    path = experiments.find(name)
    if is_sweep(path):
        if is_compiled:
            raise RobustCliError("--compile: supports only a single spec, not a sweep")
        _plan_sweep(Sweep.read(path, overrides or ()), updates, share, as_json)
        return
    spec = ExperimentSpec.read(path, overrides or ())
    for warning in spec.warnings():
        typer.echo(f"warning: {warning}", err=True)
    from robustcli.reports.plan import lines_of, tables_of
    from robustcli.workflows.plan.plan import Request, plan

    with Console(stderr=True).status(f"measuring {spec.name}"):
        found = plan(Request(spec=spec, updates=updates, robust=share, compile=is_compiled))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    screen = console()
    for table in tables_of(found):
        screen.print(table)
    for line in lines_of(found):
        screen.print(line, highlight=False, markup=False, soft_wrap=True)


def _plan_sweep(sweep: Sweep, updates: int, share: tuple[float, float] | None, as_json: bool) -> None:
    """Measure every row in its own process, so that its memory is measured separately."""
    from robustcli.reports.plan import sweep_table
    from robustcli.workflows.plan.plan import Request, plan

    rows: dict[str, dict[str, Any]] = {}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for row in sweep.rows:
            typer.echo(f"measuring {row.name} ...", err=True)
            request = Request(spec=row.specs[0], updates=updates, robust=share, savings=False)
            rows[row.name] = {"seeds": len(row.specs), **pool.submit(plan, request).result()}
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        console().print(sweep_table(sweep.name, rows))


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
