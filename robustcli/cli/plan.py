"""The command `robust plan`: parse, call, print. torch is imported inside it."""

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
    name: Annotated[str, typer.Argument(metavar="SPEC", help="A spec's or a sweep's file, or a shipped one's name.")],
    overrides: Overrides = None,
    updates: Annotated[int, typer.Option(min=3, help="How many are made and measured.")] = 20,
    robust: Annotated[
        str | None,
        typer.Option(
            help="Share of images that survive, which evaluations depend on: 0.5, or from least to largest 0.3-0.6. "
            "If left out: what the spec's claim says, else 0.3-0.6."
        ),
    ] = None,
    is_compiled: Annotated[
        bool, typer.Option("--compile", help="Also try what compiling saves; takes a minute or more.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what a run would take before it is begun: hours of training and of every evaluation, and memory.

    Twenty real updates are made, each attack makes some of its steps on a batch, and bf16 and the memory format are
    tried. Nothing is stored. Without the images of a known data set random ones take their place. Of a sweep each row
    is one line, and nothing is tried.
    """
    share = None if robust is None else _share(robust)
    path = experiments.find(name)
    if is_sweep(path):
        if is_compiled:
            raise RobustCliError("--compile: is for one spec; of a sweep's rows nothing is tried")
        _plan_sweep(Sweep.read(path, overrides or ()), updates, share, as_json)
        return
    spec = ExperimentSpec.read(path, overrides or ())
    for warning in spec.warnings():
        typer.echo(f"warning: {warning}", err=True)
    from robustcli.reports.plan import lines_of, tables_of
    from robustcli.workflows.plan.story import Request, plan

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
    """Every row in a process of its own, whose memory is that of the row alone."""
    from robustcli.reports.plan import sweep_table
    from robustcli.workflows.plan.story import Request, plan

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
    """ "0.5" or "0.3-0.6" as least and largest share."""
    words = text.split("-")
    try:
        bounds = [float(word) for word in words]
    except ValueError:
        bounds = []
    if len(bounds) not in (1, 2) or not all(0 <= bound <= 1 for bound in bounds) or bounds != sorted(bounds):
        raise RobustCliError(f"--robust: '{text}' is no share of images; write 0.5, or 0.3-0.6 for a guess")
    return bounds[0], bounds[-1]
