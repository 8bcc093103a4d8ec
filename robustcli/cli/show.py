"""`robust show`. Only architectures need torch."""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from robustcli.cli import panels
from robustcli.cli.options import console
from robustcli.errors import RobustCliError, suggest
from robustcli.registry.catalog import FAMILIES, Member, catalog
from robustcli.registry.signatures import REQUIRED, section
from robustcli.specs import experiments

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from robustcli.registry.published import Published

app = typer.Typer()

# Section titles of a docstring.
_SECTIONS = re.compile(r"^(?:When to use|First setting|Args|Reference):", re.MULTILINE)


@app.command(rich_help_panel=panels.HELP)
def show(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Defense, attack or other member, or shipped experiment.")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings of an architecture, for example depth=34 widen=10."),
    ] = None,
    is_complete: Annotated[
        bool,
        typer.Option("--published", help="Print all published accuracies of an architecture instead of the best ones."),
    ] = False,
) -> None:
    """Print the documentation, parameters, cost and source file of a defense, attack or other member."""
    members = [catalog(family)[name] for family in FAMILIES if name in catalog(family)]
    if settings and members and not any(member.family == "architectures" for member in members):
        raise RobustCliError(f"'{settings[0]}': only architectures take settings, and '{name}' is not one")
    if is_complete and not any(_published(member) for member in members):
        raise RobustCliError(f"--published: no published accuracies of '{name}' are known; try wide_resnet")
    for member in members:
        _show_member(member, settings or (), is_complete=is_complete)
    if members:
        return
    if name in (*experiments.names(), *experiments.sweeps(), *experiments.findings()) or "/" in name:
        if settings:
            raise RobustCliError(f"'{settings[0]}': only architectures take settings, and '{name}' is not one")
        typer.echo(experiments.find(name).read_text(encoding="utf-8"), nl=False)
        return
    known = [*(known for family in FAMILIES for known in catalog(family)), *experiments.names()]
    raise RobustCliError(f"nothing is called '{name}'{suggest(name, known).partition(' (known')[0]}; see `robust list`")


def _published(member: Member) -> "tuple[Published, ...]":
    """Return the published accuracies of a member; only architectures have any."""
    from robustcli.registry.published import published

    return published(member.name) if member.family == "architectures" else ()


def _show_member(member: Member, settings: Sequence[str], *, is_complete: bool) -> None:
    from rich.table import Table

    from robustcli.registry.published import best_of

    profile: Group | str = ""
    if member.family == "architectures":
        from robustcli.reports.network_profile import profile_table

        # Before anything is printed, because settings may be wrong.
        profile = profile_table(member, settings) or (
            f"its parts depend on its settings: write {_missing(member)} after `robust show {member.name}`"
        )
    screen = console()
    screen.print(f"[bold]{member.name}[/] ({member.family})", highlight=False, markup=True)
    screen.print(_SECTIONS.split(member.doc)[0].rstrip(), highlight=False, markup=False)
    use, first, reference = (_titled(member, title) for title in ("When to use", "First setting", "Reference"))
    for text in (use, first, _cost(member), reference):
        if text:
            screen.print(f"\n{text}", highlight=False, markup=False)
    table = Table("parameter", "default", "meaning", title="", box=None, padding=(0, 2))
    for parameter in member.parameters.values():
        default = "(required)" if parameter.default is REQUIRED else _plain(parameter.default)
        table.add_row(parameter.name, default, parameter.doc)
    for parameter in member.replaceable.values():
        table.add_row(parameter.name, "(as published)", parameter.doc)
    screen.print(table)
    if found := _published(member):
        lines = found if is_complete else best_of(found)
        screen.print(_published_table(lines), highlight=False)
        if more := len(found) - len(lines):
            screen.print(f"{more} more: robust show {member.name} --published\n", highlight=False)
    if profile:
        screen.print(profile, highlight=False)
    screen.print(f"code: {member.path}:{member.line}\n", highlight=False, soft_wrap=True)


def _titled(member: Member, title: str) -> str:
    """Return a section of the docstring with its title; empty if there is none."""
    text = section(member.doc, title)
    return f"{title}: {text}" if text else ""


def _cost(member: Member) -> str:
    """Describe the cost of an update or evaluation, or of a part; empty if it is not declared."""
    if member.passes is None:
        return "Cost: that of the attacks inside it." if member.family == "evaluators" else ""
    given = ", ".join(f"{name} {value}" for name, value in member.given.items())
    defaults = f"with {given} and otherwise defaults" if given else "with defaults"
    subject = {
        "attacks": f"Cost for one image {defaults}, at most",
        "evaluators": f"Cost for one image {defaults}, at most",
        "regularizers": "Adds to an update",
        "weights": "Adds to an update, each time the loss is differentiated",
    }.get(member.family, f"Cost of one update {defaults}")
    if member.fewest is None:
        return f"{subject}: {_in_words(member.passes)}."
    return (
        f"{subject}, at most: {_in_words(member.passes)}. At least, if images leave the batch when the attack is done "
        f"with them (on a CPU): {_in_words(member.fewest)}."
    )


def _in_words(passes: tuple[float, float, float]) -> str:
    if not any(passes):
        return "no passes through the network"
    kinds = ("forward", "input-gradient", "weight-gradient")
    parts = [f"{count:g} {kind}" for count, kind in zip(passes, kinds, strict=True) if count]
    listed = f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]
    listed += " pass" if sum(passes) == 1 else " passes"
    # An input gradient costs about a forward pass, and a weight gradient computes that and its own.
    total = passes[0] + passes[1] + 2 * passes[2]
    return listed if total == passes[0] else f"{listed} (about {total:g} forwards)"


def _missing(member: Member) -> str:
    """Return the required settings of an architecture, as they are written."""
    return " ".join(f"{name}=..." for name in member.required)


def _published_table(lines: "Iterable[Published]") -> "Table":
    from rich.table import Table

    table = Table(
        "settings", "clean %", "AutoAttack %", "training", "more images", "threat", "source",
        title="published", title_justify="left", box=None,
    )  # fmt: skip
    for found in lines:
        table.add_row(
            found.settings or "defaults",
            "-" if found.clean is None else f"{100 * found.clean:.2f}",
            f"{100 * found.autoattack:.2f}",
            found.training,
            found.images,
            f"{found.data}, {found.threat}",
            f"{found.source}; by {found.counted_by}",
        )
    return table


def _plain(value: object) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
