"""Checkpoints: self-describing files that are never half-written and hold nothing but data."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from robustcli import __version__
from robustcli.errors import RobustCliError
from robustcli.store.file_kinds import other_kind
from robustcli.store.files import replacing

FORMAT = 1


def save(path: Path, contents: Mapping[str, Any]) -> None:
    """Write a checkpoint, whole or not at all."""
    with replacing(path) as file:
        kept = _ErrorKeeper(file)
        try:
            torch.save({"format": FORMAT, "robustcli": __version__, **contents}, cast("BinaryIO", kept))
        except RuntimeError as error:
            # torch replaces errors of the disk by its own.
            raise kept.error or error from error


class _ErrorKeeper:
    """File that remembers the first error of writing to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._file.flush()


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU, as data alone (`weights_only`).

    Raises:
        RobustCliError: there is no such file, or it is not a checkpoint of this program.
    """
    if not path.is_file():
        raise RobustCliError(f"{path}: no such file; expected a checkpoint such as runs/NAME/.../checkpoints/best.pt")
    kind = other_kind(path)
    if kind is not None:
        raise RobustCliError(f"{path}: the file is {kind}")
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch raises whatever a broken pickle makes its reader stumble on
        raise RobustCliError(
            f"{path}: not a checkpoint that `robust train` wrote: it cannot be read as plain data "
            f"({why_unreadable(error)})"
        ) from error
    if not isinstance(contents, dict) or "format" not in contents or "spec" not in contents:
        keys = ", ".join(map(str, list(contents)[:5])) if isinstance(contents, dict) else type(contents).__name__
        raise RobustCliError(
            f"{path}: not written by `robust train` (found {keys}; expected the keys format, spec, ...)"
        )
    if contents["format"] != FORMAT:
        raise RobustCliError(f"{path}: checkpoint format {contents['format']}; this version reads format {FORMAT}")
    return contents


def why_unreadable(error: Exception) -> str:
    """What torch says of a file that it does not read as data, without its advice to read it as code."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    if found:
        return f"it holds objects of {found.group(1)}, and loading them would run code"
    first = " ".join(str(error).splitlines()[:1]).partition("Weights only load failed")[0].strip()
    return f"{type(error).__name__} {first}".strip()
