"""The parts of an architecture as a table, for `robust show`, and its size, for `robust list`."""

import torch
from rich.console import Group
from rich.table import Table

from robustcli.architectures import ImageShape
from robustcli.architectures.anatomy import Anatomy, Part, anatomy
from robustcli.catalog import Member
from robustcli.fields import Family
from robustcli.registry import instantiate
from robustcli.signatures import REQUIRED
from robustcli.specs.check import Checker

# What an architecture is measured on where nothing else is said.
SHAPE = ImageShape(3, 32, 32, 10)


def default_anatomy(member: Member) -> Anatomy | None:
    """An architecture with its defaults, in parts, or None where it has no defaults."""
    if any(parameter.default is REQUIRED for parameter in member.parameters.values()):
        return None
    chosen = Checker().chosen(Family("architectures"), {"name": member.name}, ())
    with torch.device("meta"):
        return anatomy(instantiate(chosen, SHAPE), SHAPE)


def anatomy_table(member: Member) -> Group | None:
    """Weights, cost and sight of an architecture with its defaults, or None where it has no defaults."""
    found = default_anatomy(member)
    if found is None:
        return None
    title = (
        f"by default, for {SHAPE.words}: {found.parameters:,} parameters, {found.macs / 1e9:.4f} G multiply-accumulates"
    )
    table = Table("map", "channels", "parameters", "10^6 mult.-acc.", "sees", box=None, padding=(0, 2))
    for part in found.parts:
        table.add_row(*_row(part))
    return Group(title, table)


def _row(part: Part) -> tuple[str, ...]:
    size = "means" if part.size == (1, 1) else f"{part.size[0]}x{part.size[1]}"
    field = "everything" if part.field is None else f"{part.field}x{part.field} pixels"
    return size, str(part.channels), f"{part.parameters:,}", f"{part.macs / 1e6:,.1f}", field
