"""Checkpoints: self-describing files that contain only data and are written atomically."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Self, cast

import torch
from pydantic import ConfigDict, Field, FiniteFloat, PositiveInt, WrapValidator
from torch import Tensor

from robustcli import __version__
from robustcli.errors import RobustCliError
from robustcli.store.file_kinds import other_kind
from robustcli.store.files import replacing
from robustcli.store.models import Count, Stored, parsed, short
from robustcli.store.records import CheckRecord

FORMAT = 1


def _unchanged(value: Any, check: Callable[[Any], Any]) -> Any:
    """Check a value without copying it: state dictionaries have the versions of their modules as an attribute."""
    check(value)
    return value


StateDict = Annotated[dict[str, Any], WrapValidator(_unchanged)]
Weights = Annotated[dict[str, Tensor], WrapValidator(_unchanged)]
Shape = Annotated[list[PositiveInt], Field(strict=False, min_length=4, max_length=4)]
Numbers = Annotated[list[FiniteFloat], Field(strict=False)]


class TrainingState(Stored):
    """State of training; each part checks its own."""

    updates: Count
    best_score: float
    best_epoch: int
    best_robust: float
    collapsed_at: int | None
    is_over: bool
    network: StateDict
    optimizer: StateDict
    step: StateDict
    average: StateDict
    means: StateDict


class Checkpoint(Stored):
    """Content of a checkpoint; only spec and weights are always present.

    Args:
        spec: resolved spec as YAML.
        weights: weights to evaluate: those of the network, or an average.
        shape: channels, height, width and classes.
        classes: names of the classes.
        mean, std: normalization, by channel.
        data_digest, test_digest: digests of all images, and of the test images.
        threat: norm and radius as text.
        check: check of the weights.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    spec: str
    weights: Weights
    shape: Shape | None = None
    classes: Annotated[list[str], Field(strict=False)] | None = None
    mean: Numbers | None = None
    std: Numbers | None = None
    data_digest: str | None = None
    test_digest: str | None = None
    threat: dict[str, Any] | None = None
    check: CheckRecord | None = None
    training: TrainingState | None = None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a checkpoint on the CPU, only as data (`weights_only`).

        Raises:
            RobustCliError: there is no such file, it is not a checkpoint of this program, or it is incomplete.
        """
        contents = _read(path)
        missing = [key for key, field in cls.model_fields.items() if field.is_required() and contents.get(key) is None]
        if missing:
            raise RobustCliError(f"{path}: incomplete: it has no {', '.join(missing)}; copy the checkpoint again")
        return parsed(cls, contents, path)

    def write(self, path: Path) -> None:
        """Write the checkpoint atomically."""
        contents = {name: value for name, value in self if name in self.model_fields_set}
        if self.check is not None:
            contents["check"] = self.check.to_json()
        if self.training is not None:
            contents["training"] = dict(self.training)
        with replacing(path) as file:
            kept = _ErrorKeeper(file)
            try:
                torch.save({"format": FORMAT, "robustcli": __version__, **contents}, cast("BinaryIO", kept))
            except RuntimeError as error:
                # torch hides errors of the disk.
                raise kept.error or error from error


class NetworkCheckpoint(Checkpoint):
    """A checkpoint whose network can be built."""

    shape: Shape
    mean: Numbers
    std: Numbers


class CheckedCheckpoint(NetworkCheckpoint):
    """A checkpoint that can be evaluated."""

    check: CheckRecord


class ResumableCheckpoint(Checkpoint):
    """A checkpoint from which training can continue."""

    check: CheckRecord
    training: TrainingState


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


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a file that is a checkpoint of this program, which may be incomplete."""
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
