"""Arguments and output that the commands of `robust bench` share."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from robustcli.cli.options import console
from robustcli.errors import RobustCliError
from robustcli.registry.types import Norm

if TYPE_CHECKING:
    from robustcli.bench.results.bases import Bench
    from robustcli.bench.subjects import BenchSubject

SomeBench = TypeVar("SomeBench", bound="Bench")

Checkpoints = Annotated[
    list[str], typer.Argument(help="Checkpoints, followed by values to change, for example data.root=PATH.")
]
Rounds = Annotated[int, typer.Option(min=3, help="Number of rounds; everything runs once in each.")]


def subjects_of(
    words: list[str], norm: Norm | None, eps: str | None, examples: int, data: str | None, device: str
) -> Iterator["BenchSubject"]:
    """Open one checkpoint after the other with the same overrides."""
    from robustcli.bench.subjects import open_subject

    overrides = [word for word in words if "=" in word]
    checkpoints = [word for word in words if "=" not in word]
    if not checkpoints:
        raise RobustCliError("name a checkpoint, such as runs/NAME/.../checkpoints/best.pt")
    for checkpoint in checkpoints:
        typer.echo(f"measuring {checkpoint} ...", err=True)
        yield open_subject(checkpoint, overrides, norm=norm, eps=eps, examples=examples, data=data, device=device)


def kept(results: "Iterable[SomeBench]", out: Path | None) -> "list[SomeBench]":
    """Return the results, and write them to `out` after each one, so that none is lost if a later one fails."""
    from robustcli.store.files import write_json

    found = []
    for result in results:
        found.append(result)
        if out is not None:
            write_json(out, [one.to_json() for one in found])
    return found


def show(results: Sequence["Bench"], notes: Iterable[str] = ()) -> None:
    """Print a table, notes, the machine and sentences."""
    from robustcli.reports.benchmarks.tables import terminal_of

    table, text = terminal_of(results)
    console().print(table)
    for note in dict.fromkeys(notes):
        typer.echo(f"note: {note}")
    typer.echo(results[0].describe())
    if text:
        typer.echo(text)
