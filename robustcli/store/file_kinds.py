"""Recognize files of an unexpected kind by their first bytes."""

import zipfile
from pathlib import Path

from robustcli.errors import shortened

_LFS = b"version https://git-lfs"
_MARKUP = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")
# Formats that are often stored next to weights, by their first bytes.
_FORMATS = {
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"\xfd7zXZ": "an xz archive; unpack it first",
    b"BZh": "a bzip2 archive; unpack it first",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive; unpack it first",
    b"GGUF": "a GGUF file; expected weights that torch.save wrote",
    b"\x89HDF": "an HDF5 file, as Keras writes it; expected weights that torch.save wrote",
    b"\x93NUMPY": "a single NumPy array; expected an archive, as numpy.savez writes it",
}
_ZIP = b"PK\x03\x04"
_START = 512


def other_kind(path: Path) -> str | None:
    """Describe a file that is certainly not one that torch.save or numpy.savez wrote; None if it may be one.

    The description completes "the file is ..." and gives advice.
    """
    with path.open("rb") as file:
        start = file.read(_START)
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
        return "truncated: a zip archive without its end; download or copy it again"
    if start.startswith(_ZIP) and not _has_data(path):
        return "a zip archive of other files; unpack it and name the file or folder inside"
    if start[257:262] == b"ustar":
        return "a tar archive; unpack it and name the file inside"
    if start[8:10] == b'{"' and int.from_bytes(start[:8], "little") <= path.stat().st_size:
        return "a safetensors file; load it with safetensors.torch.load_file and write it with torch.save"
    return _text_kind(start)


def _text_kind(start: bytes) -> str | None:
    """Describe a text by its first line; None if it is not a text."""
    try:
        # The last character may be incomplete.
        text = start.decode("utf-8-sig", errors="strict" if len(start) < _START else "ignore")
    except UnicodeDecodeError:
        return None
    if not all(letter.isprintable() or letter.isspace() for letter in text):
        return None
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    if not first:
        return "empty except for spaces; download or copy it again"
    return f"a text that begins with '{shortened(first, 50)}'; name another file"


def _has_data(path: Path) -> bool:
    """Return whether a zip archive may have a file that torch.save or numpy.savez writes."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(("data.pkl", ".npy")) for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        # The reader of the weights describes the damage.
        return True


def _has_an_end(path: Path) -> bool:
    """Return whether a zip archive has its final table."""
    try:
        return zipfile.is_zipfile(path)
    except (zipfile.BadZipFile, ValueError):
        return False
