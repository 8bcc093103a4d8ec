"""`robust new` and `robust check-member`: write a member, and check that it fulfills the contract of its family."""

from pathlib import Path
from typing import Annotated

import typer

from robustcli.cli import panels
from robustcli.cli.hints import current_word, family_named
from robustcli.cli.options import console
from robustcli.errors import CheckFailedError, RobustCliError, suggest
from robustcli.registry.catalog import FAMILIES, catalog
from robustcli.workflows.new import KINDS, new_member, next_steps

app = typer.Typer()


@app.command(rich_help_panel=panels.HELP)
def new(
    kind: Annotated[str, typer.Argument(metavar="KIND", help=f"Kind of member: {', '.join(KINDS)}.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new member, such as margin_at.")],
    into: Annotated[
        Path | None, typer.Option(help="Folder for the file. Default: the folder of its family in robustcli.")
    ] = None,
    package: Annotated[
        Path | None, typer.Option(help="Folder of a package of your own; created if it does not exist.")
    ] = None,
) -> None:
    """Write the file of a new defense, attack or other member: a working one, as a starting point for yours."""
    kind = current_word(kind)
    typer.echo(f"wrote {new_member(kind, name, into=into, package=package)}")
    for text in next_steps(kind, name, into=into, package=package):
        typer.echo(f"next: {text}")


@app.command("check-member", rich_help_panel=panels.HELP)
def check(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Defense, attack or other member, also of another package.")
    ],
    family: Annotated[str | None, typer.Option(help="Family of the member, if several have one of this name.")] = None,
) -> None:
    """Check that a member fulfills the contract of its family, on small networks and in seconds."""
    families = FAMILIES if family is None else (family_named(family, FAMILIES, "--family: "),)
    members = [catalog(each)[name] for each in families if name in catalog(each)]
    if not members:
        known = [known for each in families for known in catalog(each)]
        near = suggest(name, known).partition(" (known")[0]
        raise RobustCliError(f"there is no member '{name}'{near}; see `robust list`")
    from rich.markup import escape

    from robustcli.workflows.check_member import check_member

    failed = []
    for member in members:
        head = f"[bold]{member.name}[/] ({member.family}), {escape(str(member.path))}:{member.line}"
        console().print(head, highlight=False, markup=True)
        for outcome in check_member(member):
            mark = {"passed": "passed", "failed": "[red]failed[/]", "advice": "[yellow]advice[/]"}[outcome.verdict]
            reason = f": {escape(outcome.reason)}" if outcome.reason else ""
            console().print(f"  {mark} {escape(outcome.check)}{reason}", highlight=False, soft_wrap=True, markup=True)
            if outcome.verdict == "failed":
                failed.append(outcome.check)
    if failed:
        raise CheckFailedError(f"'{name}' fails {len(failed)} checks: {', '.join(failed)}")
    typer.echo("every check passed")
