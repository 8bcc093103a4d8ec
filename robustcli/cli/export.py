"""The commands of `robust export`. torch is imported inside them."""

import json
from pathlib import Path
from typing import Annotated

import typer

from robustcli.cli.options import Changes, Checkpoint, Device

app = typer.Typer(no_args_is_help=True, help="Write a network and its evaluation in the format of another project.")


# A group of one command is still a group: `robust export robustbench`.
@app.callback()
def _formats() -> None:
    pass


@app.command()
def robustbench(
    run: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of a finished run or of a stored evaluation.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New or empty folder to write to.")],
    overrides: Changes = None,
    evaluation: Annotated[str, typer.Option(help="Evaluation to report in the card.")] = "autoattack",
    metadata: Annotated[
        Path | None,
        typer.Option(help="YAML file with authors, title and so on; without it an example is printed."),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Omit fields that this evaluation does not support.")
    ] = False,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
) -> None:
    """Write a RobustBench model card, weights, loader, log and per-image results, and check them in a new process."""
    from robustcli.workflows.export.robustbench import export

    exported = export(
        run,
        out,
        evaluation=evaluation,
        metadata_file=metadata,
        is_partial=partial,
        overrides=overrides or (),
        checkpoint=checkpoint,
        device=device,
    )
    typer.echo(json.dumps(exported.card, indent=2, ensure_ascii=False))
    for key, reasons in exported.left_out.items():
        typer.echo(f"left out: {key}: {'; '.join(reasons)}")
    typer.echo(f"checked in a new process: {exported.checked}")
    typer.echo(f"card: {exported.path}")
