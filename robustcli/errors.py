"""Errors that a user can cause and fix: one message, exit code 2, no traceback."""

import errno
from collections.abc import Iterable
from difflib import get_close_matches

# Lists up to this length are shown whole; of longer ones only the nearest names.
_SHORT, _NEAREST = 10, 5


class RobustCliError(Exception):
    """Something a user can fix; only the message is shown."""


class CheckFailedError(RobustCliError):
    """A check that the user asked for failed (exit code 1)."""


class SpecError(RobustCliError):
    """A spec with problems, all of them at once.

    Args:
        source: the file, or what else the values came from.
        problems: one line each: where, what was found, what was expected.
    """

    def __init__(self, source: str, problems: list[str]) -> None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{source}: {count}", *(f"  {line}" for line in problems)]))
        self.problems = problems


class EvaluationError(RobustCliError):
    """A model, data or attack that would give a number which means nothing."""


class NotFiniteError(RobustCliError):
    """The training loss stopped being a number."""


class CollapseError(RobustCliError):
    """Robustness to many steps was lost suddenly (catastrophic overfitting)."""


class InUseError(RobustCliError):
    """Another process works in this folder; it is free again when that one is done or gone."""


class Interrupted(BaseException):
    """A signal asked the run to stop; its state is saved and it can be resumed (exit code 3).

    Not an Exception, as KeyboardInterrupt is none: whatever a reader of foreign files catches, it does not catch this.
    """


# Usual names of the field for what is called otherwise here.
_USUAL = {"aa": "autoattack", "cw": "carlini_wagner", "mifgsm": "mim", "wrn": "wide_resnet", "standard": "natural"}


def suggest(found: str, known: Iterable[str]) -> str:
    """Return the end of an error message: the nearest known name, and all of them or, if there are many, five."""
    names = sorted(set(known))
    # PGD-AT is pgd_at.
    plain = {_plain(name): name for name in reversed(names)}
    nearest = [plain[near] for near in get_close_matches(_plain(found), plain, n=_NEAREST, cutoff=0)]
    is_near = bool(get_close_matches(_plain(found), map(_plain, nearest[:1]), cutoff=0.6))
    # learning_rate is lr.
    initials = "".join(word[:1] for word in found.split("_"))
    other = _USUAL.get(_plain(found).replace("_", ""), initials if len(initials) > 1 else "")
    if not is_near and other in names:
        nearest, is_near = [other, *(name for name in nearest if name != other)][:_NEAREST], True
    hint = f"; did you mean '{nearest[0]}'?" if is_near else ""
    if len(names) <= _SHORT:
        return f"{hint} (known: {', '.join(names) or 'none'})"
    return f"{hint} (nearest of {len(names)}: {', '.join(nearest)})"


def _plain(name: str) -> str:
    return name.casefold().replace("-", "_")


def shortened(text: str, width: int = 100) -> str:
    """Return a text with its middle left out if it is long, such as a number of thousands of digits."""
    half = (width - 5) // 2
    return text if len(text) <= width else f"{text[:half]} ... {text[-half:]}"


def in_one_line(error: Exception) -> str:
    """Type of an error and the first line of its message, because compilers write pages."""
    said = str(error).splitlines()
    return f"{type(error).__name__}: {shortened(said[0], 300) if said else ''}"


# What to do about errors of files and disks, by their number.
_REMEDIES = {
    errno.ENOSPC: "the disk is full; free space",
    errno.EDQUOT: "the disk quota is used up; free space",
    errno.EFBIG: "the file is larger than is allowed here",
    errno.EROFS: "the file system is read-only; choose a folder that can be written",
    errno.EACCES: "permission denied; change the permissions or choose another folder",
    errno.EPERM: "the operation is not permitted here; choose another folder",
    errno.ENOENT: "no such file or folder; it may have been moved or deleted meanwhile",
    errno.ENOTDIR: "a part of this path is a file, not a folder",
    errno.EISDIR: "found a folder; expected a file",
    errno.EEXIST: "exists already",
    errno.ENAMETOOLONG: "the name is too long for this file system; choose a shorter one",
    errno.ELOOP: "its links lead round in a circle",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n)",
    errno.ENOLCK: "this file system has no locks; choose another folder",
    errno.ENOTSUP: "the file system does not support this; choose another folder",
    errno.EIO: "the disk reports an error",
    errno.ESTALE: "the network file system has lost this file; mount it again",
}


def disk_message(error: OSError) -> str:
    """Describe an error of a file or disk, with its path and what to do."""
    # Errors of other systems, such as a network, have their own words.
    if error.errno is None:
        return str(error) or type(error).__name__
    where = "" if error.filename is None else f"{_named(error.filename)}: "
    remedy = _REMEDIES.get(error.errno, error.strerror or str(error))
    return f"{where}{remedy}; then run the command again, which loses nothing that was finished"


def _named(path: object) -> str:
    return path.decode(errors="backslashreplace") if isinstance(path, bytes) else str(path)
