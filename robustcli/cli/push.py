"""The command `robust push`. torch is imported inside it."""

from pathlib import Path
from typing import Annotated

import typer

from robustcli.cli import panels

app = typer.Typer()


@app.command("push", rich_help_panel=panels.RESULTS)
def push_run(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="hf:ORG/REPO, or a new or empty folder.")],
    private: Annotated[bool, typer.Option("--private", help="Create a private repository.")] = False,
) -> None:
    """Publish a finished run: weights, results, evidence, and a model card with verdicts and digests.

    `robustcli.load`, `robust eval` and `robust verify` take hf:ORG/REPO or the folder.
    """
    from robustcli.reports.model_card import model_card
    from robustcli.workflows.push import push, read_run

    found = read_run(run)
    card = model_card(found.spec, found.results, found.session, found.digests, name=target)
    where = push(found, target, card, is_private=private, tell=lambda text: typer.echo(text, err=True))
    typer.echo(f"pushed to {where}")
