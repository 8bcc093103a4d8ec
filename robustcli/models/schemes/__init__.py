"""Models by name, such as timm:resnet50. One file per scheme: the word before the colon is the name of the file.

A file declares `SCHEME`; nothing else lists the schemes.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustcli.models.source import ModelSource


@dataclass(frozen=True, kw_only=True)
class NamedFile:
    """A file that a name stands for, and what the name says about it.

    Args:
        path: the file.
        title: name of the network, for titles and messages; None is that of the file.
        architecture: architecture that the weights belong to, in the form of a spec; None if the file brings its own or
            the user names it.
        weights_key: key of the weights in the file.
        unused: beginning of names of tensors that the network does not have.
        mean, std: normalization of the network, where the file holds none.
        images: data set that the network was trained on.
        size: side of the images that the network was made for.
        norm, eps: threat model that the network was trained against.
        notes: facts that a reader of its numbers must know.
    """

    path: Path
    title: str | None = None
    architecture: Mapping[str, Any] | None = None
    weights_key: str | None = None
    unused: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    images: str | None = None
    size: int | None = None
    norm: str | None = None
    eps: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How names with one prefix are found.

    Args:
        form: how a name is written, for help and messages.
        find: name after the colon, and the value of --weights or None -> what it stands for.
        takes_architecture: the user may name the architecture of the weights.
    """

    form: str
    find: Callable[[str, str | None], ModelSource | NamedFile]
    takes_architecture: bool = False


def scheme_of(text: str) -> tuple[Scheme, str] | None:
    """Return the scheme of a name and what follows the colon; None for a path."""
    prefix, colon, name = text.partition(":")
    return (_scheme(prefix), name) if colon and prefix in _names() else None


def forms() -> list[str]:
    """Return how names of every scheme are written."""
    return [_scheme(name).form for name in _names()]


def _names() -> list[str]:
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")


def _scheme(name: str) -> Scheme:
    found: Scheme = importlib.import_module(f"{__name__}.{name}").SCHEME
    return found
