"""Recognize files that are not what their name says, from their first bytes."""

import zipfile
from pathlib import Path

_LFS = b"version https://git-lfs"
_MARKUP = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")
# Formats that are often kept next to weights, by the bytes at their beginning.
_FORMATS = {
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"\xfd7zXZ": "an xz archive; unpack it first",
    b"\x89HDF": "an HDF5 file, as Keras writes it; expected weights that torch.save wrote",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"%PDF": "a PDF document",
    b"\x93NUMPY": "a single NumPy array; expected an archive, as numpy.savez writes it",
}
_ZIP = b"PK\x03\x04"


def other_kind(path: Path) -> str | None:
    """Describe a file that is certainly not one that torch.save or numpy.savez wrote; None if it may be one.

    The description completes "the file is ..." and says what helps.
    """
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "empty; download or copy it again"
    if start.startswith(_LFS):
        return "a Git LFS pointer, not the file that it stands for; run `git lfs pull` or download the file itself"
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_MARKUP):
        return "an HTML or XML page, such as the error page of a download; download the file again"
    for mark, words in _FORMATS.items():
        if start.startswith(mark):
            return words
    if start.startswith(_ZIP) and not _has_an_end(path):
        return "cut short: a zip archive without its end; download or copy it again"
    if start[257:262] == b"ustar":
        return "a tar archive; unpack it and name the file inside"
    return None


def _has_an_end(path: Path) -> bool:
    """Whether a zip archive has the table that its end holds."""
    try:
        return zipfile.is_zipfile(path)
    except (zipfile.BadZipFile, ValueError):
        return False
