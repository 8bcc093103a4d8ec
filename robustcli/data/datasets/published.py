"""Read published data sets with torchvision."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException

from robustcli.errors import RobustCliError
from robustcli.store.files import absolute

# Errors of torchvision for incomplete and wrong files.
_UNREADABLE = (RuntimeError, OSError, ValueError, TypeError, KeyError, AssertionError)


@contextmanager
def published_folder(name: str, root: str, files: Sequence[str], download: bool) -> Iterator[str]:
    """Give the folder of published files, which are read inside the context, after a download if requested.

    Args:
        name: name of the data set, for messages.
        root: folder of the files; "~" is the home folder.
        files: required files, relative to root.
        download: missing files may be downloaded inside the context.

    Raises:
        RobustCliError: files are missing or wrong; the message says how to get them.
    """
    folder = absolute(root)
    missing = [file for file in files if not (folder / file).is_file()]
    if missing and not download:
        raise RobustCliError(
            f"data.root: {name} is not in {folder} (expected there: {', '.join(missing)}); "
            "set data.root to the folder that contains it, or data.download=true to download it"
        )
    try:
        yield str(folder)
    except (*_UNREADABLE, HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if missing:
            raise RobustCliError(
                f"data.download: {name} could not be downloaded into {folder}: {reason}; "
                f"copy the files there ({', '.join(missing)}) or set data.root to a folder that contains them"
            ) from error
        raise RobustCliError(
            f"data.root: the files of {name} in {folder} are not the published ones: {reason}; "
            f"delete them ({', '.join(files)}) and set data.download=true"
        ) from error
