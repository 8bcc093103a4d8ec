"""Write files atomically, and JSON that people can read."""

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from robustcli.errors import RobustCliError


@contextmanager
def replacing(path: Path, mark: str = "writing") -> Iterator[BinaryIO]:
    """Write next to the final name, flush to the disk, then rename; after an error the file at `path` is unchanged.

    Args:
        path: the file; its folder is created.
        mark: suffix of the temporary name; processes that may write the same file at once need different ones.
    """
    temporary = path.with_name(f"{path.name}.{mark}")
    with errors_name(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        # A file that a killed process left may be a link to another file, which opening would truncate.
        temporary.unlink(missing_ok=True)
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def own_mark() -> str:
    """Return a mark that is unique among processes, also of other machines with the same storage."""
    return f"writing-{socket.gethostname()}-{os.getpid()}"


@contextmanager
def errors_name(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Add the file name to errors of the disk, also to those of writing, which have none.

    Args:
        temporary: name under which the file is written.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise


def read_yaml(path: Path) -> Any:
    """Return the plain content of a YAML file, without line numbers, which the parser of specs tracks slowly.

    Raises:
        RobustCliError: the file cannot be read.
    """
    import yaml

    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise RobustCliError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_empty(folder: Path) -> None:
    """Check that a folder to be written does not exist or is empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        found = "a folder that is not empty" if folder.is_dir() else "a file"
        raise RobustCliError(f"{folder}: found {found}; expected a new or an empty folder")


def absolute(text: str) -> Path:
    """Return the absolute path of a file that a user names; "~" is the home folder, and links may be circular."""
    return Path(os.path.realpath(os.path.expanduser(text)))


def append(path: Path, line: str) -> None:
    """Append a line to a text file atomically."""
    left = f"{line}\n".encode()
    with errors_name(path), path.open("ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                os.ftruncate(file.fileno(), size)
            raise


def copy(source: Path, path: Path) -> None:
    """Copy a file atomically."""
    with source.open("rb") as file, replacing(path) as written:
        shutil.copyfileobj(file, written)


def write_text(path: Path, text: str, mark: str = "writing") -> None:
    """Write a text in UTF-8 atomically; bytes of names that are not UTF-8 are escaped, which JSON reads back."""
    with replacing(path, mark) as file:
        file.write(text.encode(errors="backslashreplace"))


def write_json(path: Path, value: Any, *, mark: str = "writing") -> None:
    """Write indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", mark)


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        RobustCliError: the file is missing, cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RobustCliError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RobustCliError(f"{path}: not text: byte {error.start} is not UTF-8; expected JSON") from error
    except (ValueError, RecursionError) as error:
        raise RobustCliError(f"{path}: not JSON: {error}") from error
