"""Profile of an architecture: table of its parts for `robust show`, size for `robust list`."""

from collections.abc import Sequence

import torch
from rich.console import Group
from rich.table import Table

from robustcli.architectures import ImageShape
from robustcli.errors import RobustCliError
from robustcli.measuring.network_profile import Part, Profile, network_profile
from robustcli.registry.catalog import Member
from robustcli.registry.registry import instantiate
from robustcli.registry.types import Family
from robustcli.specs.check import checked_member
from robustcli.specs.spec import overridden
from robustcli.specs.yamlfile import Document

# Default shape of the images.
SHAPE = ImageShape(3, 32, 32, 10)


def profile_of(member: Member, overrides: Sequence[str] = ()) -> Profile | None:
    """Return the profile of an architecture with some settings, or None if required settings are missing.

    Raises:
        SpecError: an override names an unknown setting or an invalid value.
        RobustCliError: an override has no "=", or the architecture rejects a value.
    """
    for override in overrides:
        if "=" not in override:
            raise RobustCliError(f"'{override}' is not an override; write key=value, such as width=16")
    source = f"{member.name} {' '.join(overrides)}".rstrip()
    written = overridden(Document(source, {}, {}), overrides).value
    if not set(member.required) <= set(written):
        return None
    chosen = checked_member(Family("architectures"), {**written, "name": member.name}, (), source)
    with torch.device("meta"):
        return network_profile(instantiate(chosen, SHAPE), SHAPE)


def profile_table(member: Member, overrides: Sequence[str] = ()) -> Group | None:
    """Return a table of parameters, cost and receptive fields, or None if required settings are missing."""
    found = profile_of(member, overrides)
    if found is None:
        return None
    title = (
        f"{' '.join(overrides) or 'default settings'}, {SHAPE.text}: {found.parameters:,} parameters, "
        f"{found.macs / 1e9:.4f} G multiply-accumulates"
    )
    has_stages = any(part.name for part in found.parts)
    columns = ("map", "channels", "parameters", "10^6 mult.-acc.", "receptive field")
    table = Table(*(("part", *columns) if has_stages else columns), box=None, padding=(0, 2))
    for part in found.parts:
        table.add_row(*((part.name,) if has_stages else ()), *_row(part))
    return Group(title, table)


def _row(part: Part) -> tuple[str, ...]:
    size = "means" if part.size == (1, 1) else f"{part.size[0]}x{part.size[1]}"
    field = "whole image" if part.field is None else f"{part.field}x{part.field} pixels"
    return size, str(part.channels), f"{part.parameters:,}", f"{part.macs / 1e6:,.1f}", field
