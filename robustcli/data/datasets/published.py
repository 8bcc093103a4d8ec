"""Reading the published data sets that torchvision knows how to fetch."""

from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import TypeVar

from robustcli.errors import RobustCliError

T = TypeVar("T")

# What torchvision's readers raise on files that are cut short or are something else.
_UNREADABLE = (RuntimeError, OSError, ValueError, TypeError, KeyError, AssertionError)


def read_published(name: str, root: str, files: Sequence[str], download: bool, read: Callable[[str], T]) -> T:
    """What `read` makes of the files under root; an error that says how to get them when they are not there.

    Args:
        name: of the data set, for messages.
        root: folder that holds the files; "~" is the home folder.
        files: what must lie there, relative to root.
        download: whether `read` may fetch what is missing.
        read: called with the folder; fetches first where download is set.
    """
    folder = Path(root).expanduser().resolve()
    missing = [file for file in files if not (folder / file).is_file()]
    if missing and not download:
        raise RobustCliError(
            f"data.root: {name} is not in {folder} (expected there: {', '.join(missing)}); "
            "set data.root to the folder that has it, or data.download=true to fetch it"
        )
    try:
        return read(str(folder))
    except (*_UNREADABLE, HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if missing:
            raise RobustCliError(
                f"data.download: {name} could not be fetched into {folder}: {reason}; "
                f"put the files there by hand ({', '.join(missing)}) or set data.root to a folder that has them"
            ) from error
        raise RobustCliError(
            f"data.root: the files of {name} in {folder} are not the published ones: {reason}; "
            f"delete them ({', '.join(files)}) and set data.download=true"
        ) from error
