"""Recognize files of an unexpected kind by their first bytes."""

import json
import re
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
    b"7z\xbc\xaf": "a 7z archive; unpack it first",
    b"Rar!": "a RAR archive; unpack it first",
    b"GGUF": "a GGUF file; expected weights that torch.save wrote",
    b"SQLite format": "an SQLite data base",
    b"\x89HDF": "an HDF5 file, as Keras writes it; expected weights that torch.save wrote",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"%PDF": "a PDF document",
    b"\x93NUMPY": "a single NumPy array; expected an archive, as numpy.savez writes it",
}
_ZIP = b"PK\x03\x04"
_START = 512
# Beginnings of lines that identify texts; a comment of YAML and a title of Markdown look the same.
_TEXTS = {
    r"#!|import |from \w+ import |def |class ": "a program",
    r"---\s*$|[\w.-]+:(\s|$)": "a YAML text, such as a spec or a model card",
    r"# ": "a Markdown or YAML text, such as a README",
}


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
    if start[257:262] == b"ustar":
        return "a tar archive; unpack it and name the file inside"
    if start[8:10] == b'{"' and int.from_bytes(start[:8], "little") <= path.stat().st_size:
        return "a safetensors file; load it with safetensors.torch.load_file and write it with torch.save"
    return _text_kind(start)


def _text_kind(start: bytes) -> str | None:
    """Describe a text by its beginning; None if it is not a text."""
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
    kind = next((kind for pattern, kind in _TEXTS.items() if re.match(pattern, first)), "a text")
    if first[0] in "{[" and _is_json(text, first):
        kind = "a JSON text"
    return f"{kind} that begins with '{shortened(first, 50)}'; name another file"


def _is_json(text: str, first: str) -> bool:
    """Return whether a text is JSON, or its first line is, or it may be truncated JSON."""
    for part in (text, first):
        try:
            json.loads(part)
            return True
        except (ValueError, RecursionError):
            continue
    return bool(re.match(r'[{\[]\s*("|\{|\[|$)', text))


def _has_an_end(path: Path) -> bool:
    """Return whether a zip archive has its final table."""
    try:
        return zipfile.is_zipfile(path)
    except (zipfile.BadZipFile, ValueError):
        return False
