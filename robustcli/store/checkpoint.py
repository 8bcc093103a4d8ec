"""Checkpoints: self-describing files that contain only data and are written atomically."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO, cast

import torch
from pydantic import ConfigDict, Field, FiniteFloat, PositiveInt
from torch import Tensor

from robustcli import __version__
from robustcli.errors import RobustCliError
from robustcli.store.file_kinds import other_kind
from robustcli.store.files import replacing
from robustcli.store.models import Count, Stored, parsed, short

FORMAT = 1
# Keys for evaluations besides spec and weights, and keys for resuming.
TO_EVALUATE = ("shape", "mean", "std", "check")
TO_RESUME = ("check", "training")


class _Check(Stored):
    """Check of the weights after their epoch; empty within an epoch."""

    epoch: int | None = None
    clean: float | None = None
    robust: float | None = None
    fgsm: float | None = None
    checked_on: str | None = None


class _Training(Stored):
    """State of training; each part checks its own."""

    updates: Count
    best_score: float
    best_epoch: int
    best_robust: float
    collapsed_at: int | None
    is_over: bool
    network: dict[str, Any]
    optimizer: dict[str, Any]
    step: dict[str, Any]
    average: dict[str, Any]
    means: dict[str, Any]


class _Contents(Stored):
    """Keys of a checkpoint that are read again; only spec and weights are always present."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    spec: str
    weights: dict[str, Tensor]
    shape: Annotated[list[PositiveInt], Field(strict=False, min_length=4, max_length=4)] | None = None
    mean: Annotated[list[FiniteFloat], Field(strict=False)] | None = None
    std: Annotated[list[FiniteFloat], Field(strict=False)] | None = None
    classes: Annotated[list[str], Field(strict=False)] | None = None
    check: _Check | None = None
    training: _Training | None = None


def save(path: Path, contents: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically."""
    with replacing(path) as file:
        kept = _ErrorKeeper(file)
        try:
            torch.save({"format": FORMAT, "robustcli": __version__, **contents}, cast("BinaryIO", kept))
        except RuntimeError as error:
            # torch hides errors of the disk.
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


def load(path: Path, needed: Sequence[str] = ()) -> dict[str, Any]:
    """Read a checkpoint on the CPU, only as data (`weights_only`).

    Args:
        needed: required keys besides spec and weights.

    Raises:
        RobustCliError: there is no such file, it is not a checkpoint of this program, or it is incomplete.
    """
    if not path.is_file():
        raise RobustCliError(f"{path}: no such file; expected a checkpoint such as runs/NAME/.../checkpoints/best.pt")
    kind = other_kind(path)
    if kind is not None:
        raise RobustCliError(f"{path}: the file is {kind}")
    try:
        contents: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a broken pickle may raise anything
        raise RobustCliError(
            f"{path}: not a checkpoint that `robust train` wrote: it cannot be read as plain data "
            f"({why_unreadable(error)})"
        ) from error
    if not is_own(contents):
        keys = ", ".join(map(str, list(contents)[:5])) if isinstance(contents, dict) else type(contents).__name__
        raise RobustCliError(
            f"{path}: not written by `robust train` (found {keys}; expected the keys format, spec, ...)"
        )
    number = contents.get("format")
    if type(number) is not int or number != FORMAT:
        raise RobustCliError(f"{path}: checkpoint format {short(number)}; this version reads format {FORMAT}")
    parsed(_Contents, contents, path)
    missing = [key for key in needed if contents.get(key) is None]
    if missing:
        raise RobustCliError(f"{path}: incomplete: it has no {', '.join(missing)}; copy the checkpoint again")
    return contents


def is_own(contents: Any) -> bool:
    """Return True if the content of a file is that of a checkpoint of this program, which may be incomplete."""
    return isinstance(contents, Mapping) and ("robustcli" in contents or {"format", "spec"} <= contents.keys())


def why_unreadable(error: Exception) -> str:
    """Return the reason why torch cannot read a file as data, without its advice to read it as code."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    if found:
        return f"it holds objects of {found.group(1)}, and loading them would run code"
    first = " ".join(str(error).splitlines()[:1]).partition("Weights only load failed")[0].strip()
    return f"{type(error).__name__} {first}".strip()
