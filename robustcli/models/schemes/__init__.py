"""Models by name, such as timm:resnet50. One file per scheme, named like the prefix before the colon.

A file defines `SCHEME`; the schemes are not listed elsewhere.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustcli.errors import RobustCliError
from robustcli.models.source import Facts, ModelSource


@dataclass(frozen=True, kw_only=True)
class NamedFile(Facts):
    """A file found by a name, with known facts about it.

    Args:
        path: the file.
        title: name of the network, for titles and messages; None means the file name.
        architecture: architecture that the weights belong to, in the form of a spec; None if the file brings its own or
            the user names it.
        weights_key: key of the weights in the file.
        unused: prefix of tensors that the network does not have.
        mean, std: normalization of the network, if it is not in the file.
        notes: facts that a reader of its numbers must know.
    """

    path: Path
    title: str | None = None
    architecture: Mapping[str, Any] | None = None
    weights_key: str | None = None
    unused: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """Names with one prefix.

    Args:
        form: form of a name, for help and messages.
        find: (name after the colon, value of --weights or None) -> source.
        takes_architecture: whether the user may name the architecture of the weights.
        match: pattern with * or ? -> names after the colon; None if names cannot be listed.
    """

    form: str
    find: Callable[[str, str | None], ModelSource | NamedFile]
    takes_architecture: bool = False
    match: Callable[[str], list[str]] | None = None


def matching(text: str) -> list[str]:
    """Return the models that a name with * or ? stands for, or the name itself if it has neither or is a path.

    Raises:
        RobustCliError: no model matches, or models of this kind cannot be listed.
    """
    named = scheme_of(text)
    if named is None or not any(sign in named[1] for sign in "*?"):
        return [text]
    scheme, pattern = named
    if scheme.match is None:
        raise RobustCliError(f"{text}: only names of robustbench may contain * or ?; write {scheme.form}")
    prefix = text.removesuffix(pattern)
    return [f"{prefix}{name}" for name in scheme.match(pattern)]


def scheme_of(text: str) -> tuple[Scheme, str] | None:
    """Return the scheme of a name and the part after the colon; None for a path."""
    prefix, colon, name = text.partition(":")
    return (_scheme(prefix), name) if colon and prefix in _names() else None


def forms() -> list[str]:
    """Return the form of names of every scheme."""
    return [_scheme(name).form for name in _names()]


def _names() -> list[str]:
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")


def _scheme(name: str) -> Scheme:
    found: Scheme = importlib.import_module(f"{__name__}.{name}").SCHEME
    return found
