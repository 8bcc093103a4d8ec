"""`robust runs`: filter and sort rows, and show them as a table."""

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from rich.table import Table

from robustcli.errors import RobustCliError, suggest
from robustcli.evaluation.wording import duration, percent
from robustcli.reports.tables import plain_table
from robustcli.store.listing import ListedEvaluation, RunRow
from robustcli.workflows.variants import variants_of

WHERE = ("run", "kind", "status", "name", "seed", "defense", "architecture", "data", "norm", "eps")
# Names sort upwards; accuracies, dates and durations downwards.
SORT = ("run", "date", "seconds", "clean", "robust", "epoch")

# Maximum number of rows for which specs are read to distinguish runs of one name.
_READ = 200


def select(rows: Iterable[RunRow], where: Sequence[str], sort: str, limit: int | None) -> list[RunRow]:
    """Filter, sort and cut rows.

    Args:
        where: conditions KEY=VALUE that must all hold; VALUE may have the wildcards * and ?.
        sort: key; rows without a value come last.
        limit: largest number of rows, or None.

    Raises:
        RobustCliError: an unknown key, or a condition without "=".
    """
    if sort not in SORT:
        raise RobustCliError(f"--sort: unknown key '{sort}'{suggest(sort, SORT)}")
    for condition in where:
        key, equals, pattern = condition.partition("=")
        if not equals:
            raise RobustCliError(f"--where: found '{condition}'; expected KEY=VALUE, such as defense=trades")
        if key not in WHERE:
            raise RobustCliError(f"--where: unknown key '{key}'{suggest(key, WHERE)}")
        rows = [row for row in rows if fnmatchcase(_text(getattr(row, key)), pattern)]
    chosen = sorted(rows, key=lambda row: row.run)
    if sort != "run":
        known = [row for row in chosen if getattr(row, sort) not in (None, "")]
        known.sort(key=lambda row: getattr(row, sort), reverse=True)
        chosen = [*known, *(row for row in chosen if getattr(row, sort) in (None, ""))]
    return chosen[:limit]


def with_variants(rows: Iterable[RunRow]) -> list[RunRow]:
    """Rows, named by their paths, with the values in which runs of one name differ; only if there are not many."""
    listed = list(rows)
    if len(listed) > _READ:
        return listed
    found = variants_of([(row.name, Path(row.run) / "spec.yaml") for row in listed])
    return [row.model_copy(update={"variant": text}) for row, text in zip(listed, found, strict=True)]


def _text(value: object) -> str:
    return "" if value is None else str(value)


def run_lines(rows: Sequence[RunRow]) -> Iterator[str]:
    """One line per run or stored evaluation, with a header; `by` is the evaluation with the lowest robust accuracy.

    The run comes last, so that a long name needs no wrapping. Plain text, because laying out a table takes seconds if
    there are thousands of rows.
    """
    header = ("date", "time", "defense", "status", "clean %", "robust %", "by", "run")
    lines = [header, *(_line(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    is_number = [name in ("time", "clean %", "robust %") for name in header]
    for line in lines:
        padded = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, is_number, strict=True)
        ]
        yield "  ".join(padded).rstrip()


def _line(row: RunRow) -> tuple[str, ...]:
    *cells, run = _cells(row)
    by = f"{row.strongest[0]}{_doubt(row.strongest[1])}" if row.strongest else ""
    return (*cells, by, run)


def _cells(row: RunRow) -> tuple[str, ...]:
    clean, robust = row.clean, row.robust
    return (
        row.date[:10],
        "" if row.seconds is None else duration(row.seconds),
        row.defense,
        f"{row.status}, {row.text}" if row.status in ("running", "unfinished") else row.status,
        "" if clean is None else percent(clean),
        "" if robust is None else percent(robust),
        f"{row.run}  {row.variant}".rstrip(),
    )


def wide_table(rows: Iterable[RunRow]) -> Table:
    """One row per run or stored evaluation, with every evaluation and its interval."""
    columns = (
        "run",
        "date",
        "time",
        "defense",
        "status",
        "epoch",
        "architecture",
        "data",
        "threat",
        "accuracy % [95 %]",
    )
    text = ("run", "defense", "status", "architecture", "data", "threat", "accuracy % [95 %]")
    table = plain_table(columns, text=text)
    for row in rows:
        date, time, defense, status, *_ = _cells(row)
        # Stored from 0, shown from 1 as in the progress of training.
        epoch = "" if row.epoch is None else str(row.epoch + 1)
        found = "\n".join(f"{key}: {_interval(evaluation)}" for key, evaluation in row.evaluations.items())
        threat = f"{row.norm} {row.eps}".strip()
        run = f"{row.run}\n{row.variant}".rstrip()
        table.add_row(run, date, time, defense, status, epoch, row.architecture, row.data, threat, found)
    return table


def _interval(found: ListedEvaluation) -> str:
    return f"{percent(found.accuracy)} [{percent(found.low)}, {percent(found.high)}]{_doubt(found)}"


def _doubt(found: ListedEvaluation) -> str:
    return " SUSPECT" if found.verdict == "SUSPECT" else ""
