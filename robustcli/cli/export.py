"""The commands below `robust export`: parse, call, print. torch is imported inside commands."""

import json
from pathlib import Path
from typing import Annotated

import typer

from robustcli.cli.options import Device

app = typer.Typer(no_args_is_help=True, help="Write a network and its evaluation in a format that others read.")


# A group of one command is still a group: `robust export robustbench`.
@app.callback()
def _formats() -> None:
    pass


@app.command()
def robustbench(
    run: Annotated[Path, typer.Argument(help="A finished run's folder, or one that `robust eval` stored.")],
    out: Annotated[Path, typer.Argument(help="A folder that is new or empty.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Such as data.root=PATH.")] = None,
    evaluation: Annotated[str, typer.Option(help="Name of the evaluation that the card is about.")] = "autoattack",
    metadata: Annotated[
        Path | None, typer.Option(help="YAML with what no run knows; without it an example is shown.")
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Leave out accuracies that the evaluation does not entitle to.")
    ] = False,
    checkpoint: Annotated[str | None, typer.Option(help="The weights, if they are not where they were.")] = None,
    device: Device = "auto",
) -> None:
    """Write RobustBench's model card with weights, a loader, a log and the ledger; then load and check them anew."""
    from robustcli.workflows.export.robustbench import Request, export

    exported = export(
        Request(
            run=run,
            out=out,
            overrides=tuple(overrides or ()),
            evaluation=evaluation,
            metadata=metadata,
            is_partial=partial,
            checkpoint=checkpoint,
            device=device,
        )
    )
    typer.echo(json.dumps(exported.card, indent=2, ensure_ascii=False))
    for key, reasons in exported.left_out.items():
        typer.echo(f"left out: {key}: {'; '.join(reasons)}")
    typer.echo(f"checked in a new process: {exported.checked}")
    typer.echo(f"card: {exported.path}")
