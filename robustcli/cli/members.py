"""`robust list` and `robust show`. Only the size of architectures needs torch."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustcli.cli import panels
from robustcli.cli.hints import family_named
from robustcli.cli.options import console
from robustcli.errors import RobustCliError, suggest
from robustcli.registry.catalog import FAMILIES, Member, catalog
from robustcli.registry.signatures import REQUIRED, section
from robustcli.specs import experiments, presets

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from robustcli.registry.published import Published

app = typer.Typer()

_LISTS = (*FAMILIES, "experiments", "findings", "presets")
# Section titles of a docstring.
_SECTIONS = re.compile(r"^(?:When to use|First setting|Args|Reference):", re.MULTILINE)
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


@app.command("list", rich_help_panel=panels.HELP)
def list_members(
    registry: Annotated[
        str | None,
        typer.Argument(metavar="FAMILY", help=f"What to list: experiments, findings, presets, {', '.join(FAMILIES)}."),
    ] = None,
    match: Annotated[
        str | None, typer.Option("--match", "--paper", help="Only rows with this text in name or description.")
    ] = None,
    family: Annotated[
        str | None, typer.Option(help="Only architectures of this file, for example wide_resnet.")
    ] = None,
    max_parameters: Annotated[
        str | None, typer.Option(help="Only architectures with at most this many parameters, for example 12M.")
    ] = None,
    max_macs: Annotated[
        str | None,
        typer.Option(
            help="Only architectures with at most this many multiply-accumulates for a 3x32x32 image, for example 1G."
        ),
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option(
            help="Replace the block <!-- recipes --> or <!-- findings --> of this file by the list as a table."
        ),
    ] = None,
) -> None:
    """List what exists: defenses, attacks, architectures and so on, with one line about each."""
    if registry is not None:
        registry = family_named(registry, _LISTS)
    if into is not None:
        _write_index(into, registry)
        return
    from rich.table import Table

    filters = {"--family": family, "--max-parameters": max_parameters, "--max-macs": max_macs}
    asked = [option for option, value in filters.items() if value is not None]
    if asked and registry != "architectures":
        raise RobustCliError(f"{', '.join(asked)}: supported only by `robust list architectures`")
    names = _LISTS if registry is None else (registry,)
    found = {name: [row for row in _rows(name, family) if _matches(match, *row)] for name in names}
    if not any(found.values()):
        raise RobustCliError(f"--match: nothing has '{match}' in its name or description")
    if max_parameters is not None or max_macs is not None:
        members = [catalog("architectures")[name] for name, _ in found["architectures"]]
        _list_sizes(members, _amount("--max-parameters", max_parameters), _amount("--max-macs", max_macs))
        return
    for name, rows in found.items():
        table = Table(title=name, title_justify="left", show_header=False, box=None, padding=(0, 2))
        for row in rows:
            table.add_row(*row)
        if rows or match is None:
            console().print(table)


def _write_index(into: Path, registry: str | None) -> None:
    """Replace the block of a Markdown file by the table of experiments or of findings."""
    from robustcli.reports import finding, recipes
    from robustcli.reports.blocks import replace_block

    if registry == "experiments":
        replace_block(into, recipes.BLOCK, recipes.recipe_index())
    elif registry == "findings":
        replace_block(into, finding.BLOCK, finding.finding_index())
    else:
        raise RobustCliError("--into: only experiments and findings can be written; see `robust list --help`")


def _rows(name: str, family: str | None) -> list[tuple[str, str]]:
    """Return name and description of everything in a list.

    Args:
        family: only the architectures of this file; None means all.
    """
    if name == "presets":
        return [(known, presets.summary(known)) for known in presets.names()]
    if name in ("experiments", "findings"):
        of_runs = [*experiments.names(), *experiments.sweeps()]
        shipped = experiments.findings() if name == "findings" else of_runs
        return [(known, experiments.summary(known)) for known in shipped]
    members = catalog(name).values() if family is None else _of_file(family)
    return [(member.name, member.summary) for member in members]


def _matches(match: str | None, *words: str) -> bool:
    return match is None or match.lower() in " ".join(words).lower()


def _of_file(family: str) -> list[Member]:
    """Return the architectures that one file registers."""
    files = {member.path.stem for member in catalog("architectures").values()}
    if family not in files:
        raise RobustCliError(f"--family: no file of architectures is called '{family}'{suggest(family, sorted(files))}")
    return [member for member in catalog("architectures").values() if member.path.stem == family]


def _amount(option: str, text: str | None) -> float:
    """Parse a number that may end with k, M or G; None means no bound."""
    if text is None:
        return float("inf")
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kMG]?)", text)
    if found is None:
        raise RobustCliError(f"{option}: '{text}' is not a number; write for example 500k, 12M or 1.5G")
    return float(found[1]) * _UNITS[found[2]]


def _list_sizes(members: Iterable[Member], max_parameters: float, max_macs: float) -> None:
    """Print the architectures within both bounds; only shapes are computed."""
    from rich.table import Table

    from robustcli.reports.network_profile import SHAPE, profile_of

    sizes: list[tuple[Member, int, int]] = []
    unknown = []
    for member in members:
        found = profile_of(member)
        if found is None:
            unknown.append(member.name)
        else:
            sizes.append((member, found.parameters, found.macs))
    within = [size for size in sizes if size[1] <= max_parameters and size[2] <= max_macs]
    title = f"architectures by default, for {SHAPE.text}"
    table = Table("name", "parameters", "10^6 mult.-acc.", "", title=title, title_justify="left", box=None)
    table.columns[1].justify = table.columns[2].justify = "right"
    for member, parameters, macs in within:
        table.add_row(member.name, f"{parameters:,}", f"{macs / 1e6:,.1f}", member.summary)
    if within:
        console().print(table)
    elif sizes:
        lightest = min(sizes, key=lambda size: size[1])
        cheapest = min(sizes, key=lambda size: size[2])
        typer.echo(
            f"no architecture is that small with its defaults: {lightest[0].name} has the fewest parameters, "
            f"{lightest[1]:,}, and {cheapest[0].name} the fewest multiply-accumulates, {cheapest[2] / 1e6:,.1f} million"
        )
    if unknown:
        typer.echo(f"left out because their size depends on settings: {', '.join(unknown)}")


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
    for title in ("When to use", "First setting"):
        if text := section(member.doc, title):
            screen.print(f"\n{title}: {text}", highlight=False, markup=False)
    if cost := _cost(member):
        screen.print(f"\n{cost}", highlight=False, markup=False)
    if reference := section(member.doc, "Reference"):
        screen.print(f"\nReference: {reference}", highlight=False, markup=False)
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
