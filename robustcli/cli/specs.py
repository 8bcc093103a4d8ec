"""Commands on specs: `validate` and `cp`."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from robustcli.cli import panels
from robustcli.cli.options import print_json
from robustcli.errors import RobustCliError
from robustcli.specs import experiments

app = typer.Typer()


@app.command(rich_help_panel=panels.EXPERIMENTS)
def validate(
    specs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SPEC|KEY=VALUE",
            help="Files or names of specs and sweeps, and values to change, for example seed=1.",
        ),
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of specs, for editors.")] = False,
) -> None:
    """Check specs and sweeps without running anything, and print every problem with its line."""
    if schema:
        from robustcli.specs.schema import json_schema

        print_json(json_schema())
        return
    if not specs:
        raise RobustCliError("no spec given; name one, or use --schema")
    overrides = [word for word in specs if "=" in word]
    failures = []
    for name in (word for word in specs if word not in overrides):
        try:
            _validate(name, overrides)
        except RobustCliError as error:
            failures.append(str(error))
    if failures:
        raise RobustCliError("\n".join(failures))


def _validate(name: str, overrides: list[str]) -> None:
    """Check one file and print its digest, warnings and notes."""
    from robustcli.specs.grid import read_grid
    from robustcli.specs.spec import ExperimentSpec
    from robustcli.workflows.sweep_spec import Sweep, is_sweep

    path = experiments.find(name)
    if is_sweep(path) or read_grid(overrides).is_grid:
        checked = Sweep.read(path, overrides)
        typer.echo(f"{name}: valid, {len(checked.rows)} row{'s' * (len(checked.rows) != 1)}")
        found = [(f"row {row.name}: ", row.specs[0]) for row in checked.rows]
    else:
        found = [("", ExperimentSpec.read(path, overrides))]
        typer.echo(f"{name}: valid, digest {found[0][1].digest}")
    for where, spec in found:
        for warning in spec.warnings():
            typer.echo(f"  warning: {where}{warning}")
        for note in spec.notes():
            typer.echo(f"  note: {where}{note}")


@app.command("cp", rich_help_panel=panels.EXPERIMENTS)
def copy_experiment(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Shipped experiment or sweep.")],
    target: Annotated[Path, typer.Argument(metavar="FILE", help="New file, or folder for a file of the same name.")],
) -> None:
    """Copy a shipped spec to a new file."""
    source = experiments.find(name)
    if target.is_dir():
        target = target / source.name
    if target.exists():
        raise RobustCliError(f"{target}: exists already; choose another name or remove it")
    if not target.parent.is_dir():
        raise RobustCliError(f"{target}: there is no folder {target.parent}")
    shutil.copyfile(source, target)
    typer.echo(f"{target}: copied from {name}")
