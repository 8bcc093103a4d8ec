"""`robust pack`: write an image folder into a few files that are mapped into memory. torch is imported inside."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from robustcli.cli import panels
from robustcli.cli.options import Quiet
from robustcli.errors import RobustCliError

if TYPE_CHECKING:
    from robustcli.data.datasets.packed import Manifest

app = typer.Typer()


@app.command(rich_help_panel=panels.EXPERIMENTS)
def pack(
    folder: Annotated[
        str,
        typer.Argument(help="Folder with train/CLASS/ and test/CLASS/ (or val/CLASS/); with --check, a packed one."),
    ],
    out: Annotated[Path | None, typer.Argument(help="New or empty folder to write to.")] = None,
    size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Store pixels of N x N, decoded once as `image_folder` does. Default: store the files as they are.",
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Compare the files of a packed folder with their digests.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Write a folder of images into a few files that `data.name=packed data.root=OUT` reads fast.

    Images and their order are those of `image_folder`. An interrupted run is started again by the same command.
    """
    if check and (out is not None or size is not None):
        raise RobustCliError("--check: reads FOLDER and writes nothing; leave OUT and --size out")
    if not check and out is None:
        raise RobustCliError("OUT: missing; name a new folder, as in `robust pack FOLDER OUT`")
    from robustcli.data import packing
    from robustcli.data.datasets.packed import read_manifest

    with _names_the_argument():
        if out is None:
            manifest = read_manifest(Path(folder))
            packing.check(Path(folder), manifest)
            typer.echo(f"{folder}: {_contents(manifest)}; all digests match")
            return
        with _bar(quiet) as progress:
            manifest = packing.pack(folder, out, size, progress=progress)
    typer.echo(f"wrote {out}: {_contents(manifest)}")
    typer.echo(f"next: robust train SPEC data.name=packed data.root={out}{'' if size else ' data.size=N'}")


@contextmanager
def _names_the_argument() -> Iterator[None]:
    """Make errors about a folder name the argument instead of a spec key."""
    try:
        yield
    except RobustCliError as error:
        text = str(error)
        if not text.startswith("data.root: "):
            raise
        raise RobustCliError(f"FOLDER: {text.removeprefix('data.root: ').partition('; set data.root')[0]}") from error


@contextmanager
def _bar(is_quiet: bool) -> Iterator[Callable[[int, int], None]]:
    screen = Console(stderr=True)
    with Progress(console=screen, disable=is_quiet or not screen.is_terminal) as bar:
        task = bar.add_task("packing", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _contents(manifest: "Manifest") -> str:
    """Kind, number and size of the packed images."""
    images = " and ".join(f"{part.images:,} {name}" for name, part in manifest.parts.items())
    kind = "image files" if manifest.size is None else f"images of {manifest.size} x {manifest.size} pixels"
    shards = [shard for part in manifest.parts.values() for shard in part.shards]
    size = sum(shard.bytes for shard in shards) / 2**20
    return f"{images} {kind} of {len(manifest.classes):,} classes in {len(shards)} shards, {size:,.0f} MiB"
