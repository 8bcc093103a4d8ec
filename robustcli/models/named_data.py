"""Images that a name, a path or a part of a spec stands for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustcli.errors import RobustCliError, suggest
from robustcli.registry.catalog import Member, catalog
from robustcli.registry.registry import MemberSpec
from robustcli.specs.check import checked_member
from robustcli.specs.settings import DATASET

# Source of what the user names, for messages.
HERE = "the command line"


def named_data(data: str | Mapping[str, Any]) -> MemberSpec:
    """Return the data set that a name, a path or a part of a spec stands for."""
    return data_of(spec_of_images(data, None) if isinstance(data, str) else data)


def spec_of_images(text: str, size: int | None) -> dict[str, Any]:
    """The value of --data, a name, NAME:PATH or a path, in the form of a spec.

    Args:
        size: side of the images of a folder; None if unknown.
    """
    known = catalog("datasets")
    if text in known:
        return {"name": text}
    # A file inside a folder is more specific than the folder.
    for name in sorted(known, key=lambda name: -len(known[name].given_by)):
        member = known[name]
        if member.given_by and _is_given(Path(text), member.given_by):
            return _images_at(text, member, size)
    name, colon, path = text.partition(":")
    if colon and name in known and path and _place(known[name]):
        return _images_at(path, known[name], size)
    nearest = f"; write --data {path}" if colon and name not in known and Path(path).exists() else suggest(text, known)
    raise RobustCliError(f"--data: '{text}' is not a data set, folder or .npz file{nearest}")


def _images_at(path: str, member: Member, size: int | None) -> dict[str, Any]:
    """A data set at a path in the form of a spec; the user's own images have the size of the network."""
    sized = {"size": size} if size is not None and member.given_by and "size" in member.parameters else {}
    return {"name": member.name, _place(member): path, **sized}


def _place(member: Member) -> str:
    """Name of the parameter that says where the images of a data set lie; empty if it has none."""
    return next((name for name in member.parameters if name in ("root", "path")), "")


def _is_given(path: Path, by: str) -> bool:
    """Return True if a path has the form that a data set declares with `given_by`."""
    return (path / by[1:]).exists() and path.is_dir() if by.startswith("/") else path.suffix.lower() == by


def data_of(data: Any) -> MemberSpec:
    """Return the data set of a part of a spec.

    Raises:
        RobustCliError: there is none, or its settings are wrong or incomplete.
    """
    if data is None:
        raise RobustCliError("--data: no images given; name a data set, an .npz file or a folder of images")
    if isinstance(data, Mapping) and "size" not in data and _needs_size(str(data.get("name"))):
        raise RobustCliError(
            "data.size: missing for a folder of images; write data.size=32 or the size that the network was made for"
        )
    return checked_member(DATASET, data, ("data",), HERE)


def _needs_size(name: str) -> bool:
    """Return True if a data set of the user's images has no size of its own."""
    member = catalog("datasets").get(name)
    if member is None or not member.given_by:
        return False
    return "size" in member.parameters and member.parameters["size"].default is not None
