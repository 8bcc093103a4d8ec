"""The command `robust show-examples`. torch is imported inside it."""

from pathlib import Path
from typing import Annotated

import typer

from robustcli.cli import panels
from robustcli.cli.options import Changes
from robustcli.errors import RobustCliError

app = typer.Typer()


@app.command("show-examples", rich_help_panel=panels.RESULTS)
def show_examples(
    folder: Annotated[Path, typer.Argument(help="Folder of a run or of a stored evaluation.")],
    overrides: Changes = None,
    key: Annotated[str | None, typer.Option(help="Evaluation. Default: the last one that stored examples.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first N broken images.")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Draw clean image, difference and adversarial example into this .png file.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write x, x_adv (float32 in [0, 1]), labels, predictions and indices to this .npz file."),
    ] = None,
) -> None:
    """List stored adversarial examples, draw them, or write them for other tools."""
    from robustcli.reports.images import save_grid
    from robustcli.workflows.examples import stored_examples

    if out is not None and out.suffix.lower() != ".npz":
        raise RobustCliError(f"--out: {out}: found {out.suffix or 'no suffix'}; expected .npz")
    found = stored_examples(folder, overrides or (), key=key, limit=limit)
    if picture is not None:
        save_grid(picture, found)
        typer.echo(f"wrote {picture}")
    if out is not None:
        found.save(out)
        typer.echo(f"wrote {out}")
    if picture is None and out is None:
        for index, label, prediction, attack in zip(
            found.indices, found.labels, found.predictions, found.broken_by, strict=True
        ):
            typer.echo(f"image {index}: {found.classes[label]} predicted as {found.classes[prediction]}, by {attack}")
    typer.echo(f"{found.key}: {len(found.indices)} adversarial examples")
