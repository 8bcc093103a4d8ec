"""`robust list`. Only the size of architectures needs torch."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustcli.cli import panels
from robustcli.cli.hints import family_named
from robustcli.cli.options import console
from robustcli.errors import RobustCliError, suggest
from robustcli.registry.catalog import FAMILIES, Member, catalog
from robustcli.specs import experiments, presets

if TYPE_CHECKING:
    pass

app = typer.Typer()

_LISTS = (*FAMILIES, "experiments", "findings", "presets")
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
        table.add_column(no_wrap=True)
        table.add_column()
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
