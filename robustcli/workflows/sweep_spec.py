"""A sweep's file -> checked specs, one for each row and seed. No torch here: sweeps are checked without it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from robustcli.errors import RobustCliError, SpecError, suggest
from robustcli.registry.types import Size
from robustcli.specs.check import Checker, Where, settings_of
from robustcli.specs.spec import NAME, ExperimentSpec, Name, located, overridden
from robustcli.specs.yamlfile import Document, read_yaml

# What the sweep itself says of every row.
_OWN = {"name": "a row's run is named by the sweep and the row", "seed": "write seeds beside base"}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        specs: that differ in their seed alone.
    """

    name: str
    specs: tuple[ExperimentSpec, ...]


@dataclass(frozen=True, kw_only=True)
class _Head:
    """What a sweep's file holds.

    Args:
        name: of the sweep, for folders and for the block of a page.
        base: a spec without name and seed.
        rows: by their names, what differs from the base.
        seeds: of every row.
    """

    name: Name
    base: Mapping[str, Any]
    rows: Mapping[str, Any]
    seeds: tuple[Size, ...] = (0,)


@dataclass(frozen=True)
class Sweep:
    """A family of experiments that are told in one table."""

    name: str
    rows: tuple[Row, ...]

    @classmethod
    def read(cls, path: Path, overrides: Sequence[str] = (), only: Sequence[str] = ()) -> "Sweep":
        """Read a file and check every row as a spec.

        Args:
            overrides: dotted, of every row that is asked for.
            only: names of the rows asked for, in any order; nothing is all. The others are checked as they are written.

        Raises:
            SpecError: with all problems of all rows at once, each with its line.
            RobustCliError: there is no such row, or an override is of what rows may not say.
        """
        return cls.check(read_yaml(path), overrides, only)

    @classmethod
    def check(cls, document: Document, overrides: Sequence[str] = (), only: Sequence[str] = ()) -> "Sweep":
        """Check a parsed sweep."""
        for override in overrides:
            key = override.partition("=")[0]
            if key in _OWN:
                raise RobustCliError(f"override '{override}': {_OWN[key]}")
        head = _head(document)
        for name in only:
            if name not in head.rows:
                raise RobustCliError(f"{document.source}: has no row '{name}'{suggest(name, head.rows)}")
        chosen = only or list(head.rows)
        problems: dict[str, list[str]] = {}
        rows = []
        for name in head.rows:
            try:
                row = _row(document, head, name)
                spec = ExperimentSpec.check(overridden(row, overrides if name in chosen else ()))
            except SpecError as error:
                for problem in error.problems:
                    problems.setdefault(problem, []).append(name)
                continue
            if name in chosen:
                rows.append(Row(name, tuple(replace(spec, seed=seed) for seed in head.seeds)))
        if problems:
            # What is wrong in the base is wrong in every row, and told once.
            wrong = {
                problem: "every row" if len(names) == len(head.rows) > 1 else f"row {', '.join(names)}"
                for problem, names in problems.items()
            }
            raise SpecError(document.source, [f"{where}: {problem}" for problem, where in wrong.items()])
        return cls(head.name, tuple(rows))


def is_sweep(path: Path) -> bool:
    """Whether a file has rows, which no spec has."""
    value = read_yaml(path).value
    return isinstance(value, Mapping) and "rows" in value


def _head(document: Document) -> _Head:
    checker = Checker()
    if not isinstance(document.value, Mapping):
        raise SpecError(document.source, [f"not a mapping; a sweep has the keys {', '.join(settings_of(_Head))}"])
    resolved = checker.parameters(settings_of(_Head), document.value, (), "a sweep")
    if not checker.problems:
        head = _Head(**resolved)
        checker.problems += _of_rows(head)
        if not checker.problems:
            return head
    raise SpecError(document.source, [located(document, where) + text for where, text in checker.problems])


def _of_rows(head: _Head) -> list[tuple[Where, str]]:
    """What is wrong with rows beside their being specs."""
    found: list[tuple[Where, str]] = []
    if not head.rows:
        found.append((("rows",), "there are none"))
    if not head.seeds or len(set(head.seeds)) < len(head.seeds):
        found.append((("seeds",), "name at least one, and none twice"))
    for name, row in head.rows.items():
        if not re.fullmatch(NAME, name):
            found.append((("rows", name), "names of rows hold letters, digits, _ . and - only"))
        if row is not None and not isinstance(row, Mapping):
            found.append((("rows", name), "not a mapping of what differs from the base; {} is nothing"))
    parts: list[tuple[Where, Any]] = [(("base",), head.base)]
    parts += [(("rows", name), row) for name, row in head.rows.items()]
    for where, part in parts:
        found += [((*where, key), text) for key, text in _OWN.items() if isinstance(part, Mapping) and key in part]
    return found


def _row(document: Document, head: _Head, name: str) -> Document:
    """One row as the document of a spec, whose places are those of the sweep's file."""
    changes = head.rows[name] or {}
    replaced: list[Where] = []
    value = _merged(head.base, changes, (), replaced)
    places = {
        where[1:]: place
        for where, place in document.places.items()
        if where[:1] == ("base",) and not any(where[1:][: len(path)] == path for path in replaced)
    }
    places |= {where[2:]: place for where, place in document.places.items() if where[:2] == ("rows", name)}
    return Document(document.source, {"name": f"{head.name}.{name}", **value}, places)


def _merged(before: Any, change: Any, path: Where, replaced: list[Where]) -> Any:
    """A mapping changes the keys that it names; with a name it chooses a member anew, and replaces."""
    if isinstance(change, Mapping) and "name" not in change:
        if isinstance(before, str):
            before = {"name": before}
        if isinstance(before, Mapping):
            inner = {key: _merged(before.get(key), item, (*path, key), replaced) for key, item in change.items()}
            return {**before, **inner}
    replaced.append(path)
    return change
