"""The command `robust explain`."""

from textwrap import shorten
from typing import Annotated

import typer

from robustcli.cli import panels

app = typer.Typer()


@app.command("explain", rich_help_panel=panels.HELP)
def explain(
    text: Annotated[
        list[str] | None,
        typer.Argument(help="Verdict, state of a run, exit code, or words of a message; without it all are listed."),
    ] = None,
) -> None:
    """Explain a verdict, a suspicion, the state of a run or an exit code, and what to do about it."""
    from robustcli.reports.explanations import EXPLANATIONS, explanations_of

    if not text:
        width = max(len(one.code) for one in EXPLANATIONS)
        for one in EXPLANATIONS:
            first = shorten(one.means.partition(". ")[0].rstrip("."), 100, placeholder=" ...")
            typer.echo(f"{one.code:{width}}  {first}")
        return
    for one in explanations_of(" ".join(text)):
        typer.echo(f"{one.code}: {one.means}\nWhat to do: {one.then}")
