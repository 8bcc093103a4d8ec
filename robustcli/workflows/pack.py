"""`robust pack`: convert an image folder into a few memory-mapped files."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from robustcli.data import packing
from robustcli.data.datasets.packed import Manifest, read_manifest
from robustcli.errors import RobustCliError


def pack(folder: str, out: Path, size: int | None, progress: Callable[[int, int], None]) -> Manifest:
    """Pack a folder, and return the manifest.

    Args:
        size: height and width of the pixels to store; None stores the original files.
        progress: called with the number of images written so far and the total.
    """
    with _names_the_argument():
        return packing.pack(folder, out, size, progress=progress)


def check(folder: Path) -> Manifest:
    """Compare a packed folder with its digests, and return the manifest."""
    with _names_the_argument():
        manifest = read_manifest(folder)
        packing.check(folder, manifest)
        return manifest


@contextmanager
def _names_the_argument() -> Iterator[None]:
    """Make errors about a folder name the argument instead of a spec key."""
    try:
        yield
    except RobustCliError as error:
        text = str(error)
        if not text.startswith("data.root: "):
            raise
        raise RobustCliError(f"FOLDER: {text.removeprefix('data.root: ')}") from error
