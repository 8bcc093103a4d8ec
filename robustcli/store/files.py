"""Files that a reader never meets half-written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path, mark: str = "writing") -> Iterator[BinaryIO]:
    """Write beside the final name, flush to the disk, then rename; after an error the file at `path` is as it was.

    Args:
        path: of the file; its folder is made.
        mark: ends the name beside it; processes that may write one file at once each have their own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{mark}")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str, mark: str = "writing") -> None:
    """Put a text in UTF-8 at a path, whole or not at all."""
    with replacing(path, mark) as file:
        file.write(text.encode())
