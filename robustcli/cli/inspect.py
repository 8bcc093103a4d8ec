"""The command `robust inspect`. torch is imported inside it."""

from typing import Annotated, Any

import typer

from robustcli.cli import panels
from robustcli.cli.options import Json, print_json

app = typer.Typer()


@app.command("inspect", rich_help_panel=panels.EVALUATION)
def inspect_file(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="Run folder, checkpoint, weights file, TorchScript file, or a name such as hf:ORG/REPO.",
        ),
    ],
    as_json: Json = False,
) -> None:
    """Show the contents of a file of a network: kind, digest, architecture, normalization, and how to evaluate it.

    The file is read as data; no code in it is run.
    """
    from robustcli.workflows.inspect import inspect

    facts = inspect(subject)
    if as_json:
        print_json(facts)
        return
    for key, value in facts.items():
        if key == "sets":
            for place, about in value.items():
                types = ", ".join(about["types"])
                numbers = f"{about['tensors']} tensors with {about['values']:,} values, buffers included ({types})"
                where = "" if place == "the top" else f" in {place}"
                typer.echo(f"weights{where}: {numbers}, from {about['first']} to {about['last']}")
        elif value not in (None, [], {}):
            typer.echo(f"{key.replace('_', ' ')}: {_words(value)}")


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key} {_words(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    return f"{value:,}" if isinstance(value, int) else str(value)
