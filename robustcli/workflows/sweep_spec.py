"""Read a sweep, or a spec with a grid, as checked specs, one per row and seed. Does not import torch."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from robustcli.errors import RobustCliError, SpecError, suggest
from robustcli.registry.types import Size
from robustcli.specs import experiments
from robustcli.specs.check import Checker, settings_of
from robustcli.specs.grid import read_grid
from robustcli.specs.places import Where
from robustcli.specs.spec import NAME, ExperimentSpec, Name, located, overridden
from robustcli.specs.yamlfile import Document, read_yaml
from robustcli.workflows.finding_spec import Finding, Measure, problems_of

# Keys that the sweep sets in every row.
_OWN = {"name": "a row's run is named by the sweep and the row", "seed": "write seeds next to base"}
# Keys that a sweep does not take from its base if that is the name of a spec.
_LEFT_OUT = ("name", "seed", "claim")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        name: name of the row, such as "trades" or "beta=1,lr=0.1".
        specs: specs that differ only in their seed.
    """

    name: str
    specs: tuple[ExperimentSpec, ...]


@dataclass(frozen=True, kw_only=True)
class _Head:
    """Keys of a sweep's file.

    Args:
        name: name of the sweep, for folders and for the block of a page.
        base: a spec without name and seed.
        rows: differences from the base, by name of the row.
        seeds: seeds of every row.
        finding: claim of a paper that the rows test; null for a plain table.
    """

    name: Name
    base: Mapping[str, Any]
    rows: Mapping[str, Any]
    seeds: tuple[Size, ...] = (0,)
    finding: Finding | None = None


@dataclass(frozen=True)
class Sweep:
    """Experiments that are shown in one table.

    Args:
        finding: claim of a paper that the rows test, if there is one.
    """

    name: str
    rows: tuple[Row, ...]
    finding: Finding | None = None

    @classmethod
    def read(cls, path: Path, overrides: Sequence[str] = (), only: Sequence[str] = ()) -> "Sweep":
        """Read a file and check every row as a spec.

        Args:
            path: file of a sweep, or of a spec if the overrides make a grid.
            overrides: dotted overrides of every requested row. With several values, such as `defense.beta=1,3`, every
                row becomes one row per combination; `seed` replaces the seeds.
            only: names of the requested rows, in any order; if empty, all. The other rows are checked without
                overrides, and a finding, which needs all rows, is ignored.

        Raises:
            SpecError: with all problems of all rows at once, each with its line.
            RobustCliError: there is no such row, or an override is of a key that rows must not set.
        """
        document = read_yaml(path)
        if isinstance(document.value, Mapping) and not {"rows", "base"} & document.value.keys():
            return _grid_of_spec(document, overrides, only)
        return cls.check(document, overrides, only)

    @classmethod
    def check(cls, document: Document, overrides: Sequence[str] = (), only: Sequence[str] = ()) -> "Sweep":
        """Check a parsed sweep."""
        grid = read_grid(overrides)
        for override in overrides:
            if override.partition("=")[0] == "name":
                raise RobustCliError(f"override '{override}': {_OWN['name']}")
        document = _with_base(document)
        head = _head(document)
        combinations = list(grid.rows())
        # Rows of a grid are selected by their own name, or together by the name of the row in the file.
        names = {(row, part): ",".join(filter(None, (row, part))) for row in head.rows for part, _ in combinations}
        _require_rows(document, only, {*names.values(), *head.rows})
        chosen = {name for (row, _), name in names.items() if not only or row in only or name in only}
        documents = {
            name: overridden(_row(document, head, row), dict(combinations)[part] if name in chosen else ())
            for (row, part), name in names.items()
        }
        specs = _checked(document.source, documents)
        seeds = grid.seeds or head.seeds
        finding = None if only or len(combinations) > 1 else head.finding
        if finding is not None:
            _check_finding(document, finding, specs, seeds)
        return cls(head.name, tuple(_with_seeds(name, specs[name], seeds) for name in specs if name in chosen), finding)


def _check_finding(
    document: Document, finding: Finding, specs: Mapping[str, ExperimentSpec], seeds: Sequence[Size]
) -> None:
    shared = [
        key for key in next(iter(specs.values())).evaluate if all(key in spec.evaluate for spec in specs.values())
    ]
    problems = [
        located(document, ("finding", *where)) + text for where, text in problems_of(finding, list(specs), shared)
    ]
    if len(seeds) < 2:
        problems.append("seeds: a finding needs two seeds or more for an interval")
    if problems:
        raise SpecError(document.source, problems)


def _grid_of_spec(document: Document, overrides: Sequence[str], only: Sequence[str]) -> Sweep:
    """Sweep over the combinations of a grid; each run is the one that `robust train` makes of these values."""
    grid = read_grid(overrides)
    if not grid.is_grid:
        raise RobustCliError(
            f"{document.source}: found a spec; expected a sweep, or several values such as seed=0,1,2 defense.beta=1,3"
        )
    documents = {name or "all": overridden(document, changes) for name, changes in grid.rows()}
    _require_rows(document, only, documents)
    specs = _checked(document.source, documents)
    known: dict[str, str] = {}
    for name, spec in specs.items():
        if (other := known.setdefault(spec.digest, name)) != name:
            raise RobustCliError(f"rows {other} and {name} are the same experiment; remove one of the values")
    rows = [_with_seeds(name, spec, grid.seeds or (spec.seed,)) for name, spec in specs.items()]
    return Sweep(rows[0].specs[0].name, tuple(row for row in rows if not only or row.name in only))


def _checked(source: str, documents: Mapping[str, Document]) -> dict[str, ExperimentSpec]:
    """Specs by the names of their rows.

    Raises:
        SpecError: with all problems of all rows, each once and with its rows.
    """
    problems: dict[str, list[str]] = {}
    specs = {}
    for name, document in documents.items():
        try:
            specs[name] = ExperimentSpec.check(document)
        except SpecError as error:
            for problem in error.problems:
                problems.setdefault(problem, []).append(name)
    if problems:
        # A problem of the base occurs in every row.
        wrong = {
            problem: "every row" if len(names) == len(documents) > 1 else f"row {', '.join(names)}"
            for problem, names in problems.items()
        }
        raise SpecError(source, [f"{where}: {problem}" for problem, where in wrong.items()])
    return specs


def _with_seeds(name: str, spec: ExperimentSpec, seeds: Sequence[int]) -> Row:
    return Row(name, tuple(replace(spec, seed=seed) for seed in seeds))


def _require_rows(document: Document, only: Sequence[str], known: Collection[str]) -> None:
    for name in only:
        if name not in known:
            raise RobustCliError(f"{document.source}: has no row '{name}'{suggest(name, known)}")


def _with_base(document: Document) -> Document:
    """Return the sweep with its base inserted, if that is a file or the name of a shipped spec.

    A file is searched next to the sweep first.
    """
    value = document.value
    if not isinstance(value, Mapping) or not isinstance(value.get("base"), str):
        return document
    near = Path(document.source).parent / value["base"]
    try:
        base = read_yaml(near if near.is_file() else experiments.find(value["base"]))
    except RobustCliError as error:
        raise SpecError(document.source, [f"{document.places[('base',)]}: base: {error}"]) from error
    if not isinstance(base.value, Mapping) or "rows" in base.value:
        raise SpecError(document.source, [f"{document.places[('base',)]}: base: {value['base']} is not a spec"])
    kept = {key: part for key, part in base.value.items() if key not in _LEFT_OUT}
    places = {("base", *where): f"{value['base']}, {place}" for where, place in base.places.items() if where}
    return Document(document.source, {**value, "base": kept}, {**document.places, **places})


def is_sweep(path: Path) -> bool:
    """Return True if a file has rows, which no spec has."""
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
        if head.finding is not None:
            head = replace(head, finding=_with_measures(head.finding, checker))
        if not checker.problems:
            return head
    raise SpecError(document.source, [located(document, where) + text for where, text in checker.problems])


def _with_measures(finding: Finding, checker: Checker) -> Finding:
    """Check the diagnostics of a finding."""
    checked = {
        name: checker.settings(Measure, value, ("finding", "measure", name)) for name, value in finding.measure.items()
    }
    return replace(finding, measure=checked)


def _of_rows(head: _Head) -> list[tuple[Where, str]]:
    """Problems of rows besides those of their specs."""
    found: list[tuple[Where, str]] = []
    if not head.rows:
        found.append((("rows",), "is empty"))
    if not head.seeds or len(set(head.seeds)) < len(head.seeds):
        found.append((("seeds",), "needs at least one seed, without duplicates"))
    for name, row in head.rows.items():
        if not re.fullmatch(NAME, name):
            found.append((("rows", name), "names of rows may contain letters, digits, _ . and - only"))
        if row is not None and not isinstance(row, Mapping):
            found.append((("rows", name), "is not a mapping of differences from the base; use {} for none"))
    parts: list[tuple[Where, Any]] = [(("base",), head.base)]
    parts += [(("rows", name), row) for name, row in head.rows.items()]
    for where, part in parts:
        found += [((*where, key), text) for key, text in _OWN.items() if isinstance(part, Mapping) and key in part]
    return found


def _row(document: Document, head: _Head, name: str) -> Document:
    """Return one row as a spec, with the line numbers of the sweep's file."""
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
    """Merge: a mapping changes only its keys, except that one with a name replaces the member."""
    if isinstance(change, Mapping) and "name" not in change:
        if isinstance(before, str):
            before = {"name": before}
        if isinstance(before, Mapping):
            inner = {key: _merged(before.get(key), item, (*path, key), replaced) for key, item in change.items()}
            return {**before, **inner}
    replaced.append(path)
    return change
