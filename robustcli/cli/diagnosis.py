"""`robust diagnose`. torch is imported inside it."""

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustcli.cli import options, panels
from robustcli.cli.evaluation import models_of
from robustcli.cli.options import console, print_json
from robustcli.errors import RobustCliError

if TYPE_CHECKING:
    from robustcli.workflows.diagnose import Diagnosis

app = typer.Typer()


@app.command("diagnose", rich_help_panel=panels.EVALUATION)
def diagnose_network(
    context: typer.Context,
    subject: options.Subject = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Values to change, for example data.root=PATH or eps_curve.batch_size=50."
        ),
    ] = None,
    names: Annotated[
        list[str] | None,
        typer.Option("--with", help="Diagnostic to run; may be repeated. See `robust list diagnostics`."),
    ] = None,
    architecture: options.Architecture = None,
    model: options.Model = None,
    weights: options.WeightsFile = None,
    weights_key: options.WeightsKey = None,
    mean: options.Mean = None,
    std: options.Std = None,
    preprocess: options.Preprocess = None,
    eps: options.Eps = None,
    norm: options.NormOption = None,
    examples: options.Examples = None,
    data: options.Images = None,
    seed: options.Seed = None,
    device: options.Device = "auto",
    out: options.Out = None,
    picture: Annotated[
        Path | None,
        typer.Option(callback=options.a_file, help="Draw curves and surfaces into this .png, .pdf or .svg file."),
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Diagnose a network beyond its accuracy: curves, loss surfaces, calibration, convergence of attacks."""
    from robustcli.reports.picture import draw, require_picture
    from robustcli.store.files import write_json
    from robustcli.workflows.diagnose import diagnose

    if picture is not None:
        require_picture(picture)
    wanted, *others = models_of(context.params)
    if others:
        raise RobustCliError(
            f"'{others[0].text}': found a second model; expected one, and values such as data.root=PATH"
        )
    steps = diagnose(
        wanted,
        tuple(dict.fromkeys(names or ())),
        eps=eps,
        norm=norm,
        examples=examples,
        seed=seed,
        device=device,
        begins=lambda name: None if quiet else typer.echo(f"diagnosing {name} ...", err=True),
    )
    results = next(steps)
    title = f"{wanted.text or model}, {results.threat}"
    try:
        for step in chain([results], steps):
            results = step
            if out is not None:
                write_json(out, results.to_json())
    finally:
        # Also if a later diagnostic fails.
        if as_json:
            print_json(results.to_json())
        else:
            _print_findings(title, results)
    # Last, so that results are kept if there is nothing to draw.
    if picture is not None:
        draw(picture, title, {name: one.found for name, one in results.diagnostics.items()}, results.threat.norm)


def _print_findings(title: str, results: "Diagnosis") -> None:
    from rich.markup import escape

    from robustcli.reports.diagnostics import finding_parts

    screen = console()
    typer.echo(f"{title}, {results.examples} images")
    for name, result in results.diagnostics.items():
        for part, shown in finding_parts(result.found):
            screen.print(f"[bold]{name}[/]{f': {escape(part)}' if part else ''}", highlight=False, markup=True)
            screen.print(shown, highlight=False)
    for line in results.notes:
        typer.echo(f"note: {line}")
    for name, result in results.diagnostics.items():
        for warning in result.warnings:
            typer.echo(f"note: {name}: {warning}")
