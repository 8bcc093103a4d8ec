"""Blocks of a Markdown file that commands replace: `<!-- name -->` to `<!-- /name -->`."""

import re
from pathlib import Path

from robustcli.errors import RobustCliError
from robustcli.store.files import write_text


def replace_block(path: Path, name: str, block: str) -> None:
    """Replace the text between `<!-- name -->` and `<!-- /name -->` of a file.

    Raises:
        RobustCliError: the file or the block is missing.
    """
    before, after = _around_block(path, name)
    write_text(path, before + block + after)


def require_block(path: Path, name: str) -> None:
    """Raise the errors of `replace_block`, before the work whose result goes there."""
    _around_block(path, name)


def _around_block(path: Path, name: str) -> tuple[str, str]:
    """Text of a file before and after the content of a block."""
    if not path.is_file():
        raise RobustCliError(f"{path}: no such file")
    text = path.read_text(encoding="utf-8")
    found = re.search(rf"<!-- {re.escape(name)} -->\n(.*?)<!-- /{re.escape(name)} -->", text, re.DOTALL)
    if found is None:
        raise RobustCliError(f"{path}: found no block; expected <!-- {name} --> and <!-- /{name} -->")
    return text[: found.start(1)], text[found.end(1) :]
