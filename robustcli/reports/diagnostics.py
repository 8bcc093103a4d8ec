"""Tables of the results of diagnostics, from plain data (diagnostics/__init__.py describes its forms)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from robustcli.evaluation.wording import percent

# Wider grids are not printed.
_WIDEST_GRID = 20


def finding_parts(found: Mapping[str, Any]) -> Iterator[tuple[str, str | Table]]:
    """Yield the results of one diagnostic as (title, part): single values as text, then tables and grids."""
    single = {key: value for key, value in found.items() if not isinstance(value, Mapping | list)}
    # Mappings such as mean and quantiles become rows.
    groups = {key: value for key, value in found.items() if isinstance(value, Mapping) and not _is_surface(value)}
    if single:
        yield "", ", ".join(f"{_header(key)} {_cell(key, value)}" for key, value in single.items())
    if groups:
        yield "", _table([{"of": key, **value} for key, value in groups.items()])
    for key, value in found.items():
        if isinstance(value, Mapping) and _is_surface(value):
            yield key, _table(list(_extremes(value)))
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            yield "" if key in ("rows", "curve") else key, _table(value)
        elif isinstance(value, list) and value and isinstance(value[0], list):
            if len(value[0]) <= _WIDEST_GRID:
                yield key, _grid(value)
        elif isinstance(value, list):
            yield key, ", ".join(_cell(key, item) for item in value) or "none"


def axes_and_grids(surface: Mapping[str, Any]) -> tuple[list[tuple[str, list[float]]], dict[str, list[list[float]]]]:
    """Return the two axes of a surface, and its grids by name."""
    axes = [(key, value) for key, value in surface.items() if not isinstance(value[0], list)]
    return axes, {key: value for key, value in surface.items() if isinstance(value[0], list)}


def _is_surface(value: Mapping[str, Any]) -> bool:
    return any(isinstance(item, list) for item in value.values())


def _extremes(surface: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the minimum and maximum of each grid, because a whole grid would fill the screen."""
    axes, grids = axes_and_grids(surface)
    (first, rows), (second, columns) = axes
    for key, grid in grids.items():
        places = [(value, rows[i], columns[j]) for i, row in enumerate(grid) for j, value in enumerate(row)]
        for name, (value, a, b) in (("least", min(places)), ("greatest", max(places))):
            yield {"of": key, "": name, "value": value, first: a, second: b}


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table()
    for key in rows[0]:
        is_text = any(isinstance(row[key], str) for row in rows)
        table.add_column(_header(key), justify="left" if is_text else "right")
    for row in rows:
        table.add_row(*(_cell(key, value) for key, value in row.items()))
    return table


def _grid(grid: Sequence[Sequence[float]]) -> Table:
    table = Table()
    for column in ("", *range(len(grid[0]))):
        table.add_column(str(column), justify="right")
    for number, row in enumerate(grid):
        table.add_row(str(number), *(_cell("", value) for value in row))
    return table


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if _is_accuracy(key) and not isinstance(value, str):
        return percent(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_accuracy(key: str) -> bool:
    return key.endswith("accuracy")


def _header(key: str) -> str:
    words = key.replace("_", " ")
    return f"{words} %" if _is_accuracy(key) else words
