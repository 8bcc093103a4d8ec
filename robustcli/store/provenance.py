"""Provenance of a run or an evaluation: its images, and the processes that worked on it."""

import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import ConfigDict

import robustcli
from robustcli import __version__
from robustcli.store.files import read_json
from robustcli.store.models import Count, Stored, parsed

_PACKAGES = ("torch", "torchvision", "pyautoattack", "numpy", "scikit-learn", "pydantic")


class Sizes(Stored):
    """Number of images by split."""

    train: Count
    val: Count
    test: Count


class DataRecord(Stored):
    """Images of a run.

    Args:
        digest: digest of all images and labels.
        decode: encoding of the files, such as JPEG; "" for raw pixels.
        extra_digest: digest of the additional training images; "" if there are none.
    """

    digest: str
    sizes: Sizes
    decode: str
    extra_digest: str = ""


class Session(Stored):
    """One process that worked on a run or an evaluation: commit, versions, device and command.

    Decisions of the session, such as a halved batch, are kept as further keys.
    """

    model_config = ConfigDict(extra="allow")

    started: str
    command: list[str]
    device: str
    platform: str
    python: str
    versions: dict[str, str | None]
    commit: str | None
    dirty: bool | None


class Provenance(Stored):
    """provenance.json of a run: its images and every session.

    Args:
        continued_from: folder, epochs and updates of the shorter run that it continues, whose sessions come first.
    """

    data: DataRecord
    sessions: list[Session]
    continued_from: str | None = None


def read_provenance(path: Path) -> Provenance:
    """Read provenance.json of a run.

    Raises:
        RobustCliError: the file is missing, damaged or of another kind; the message has the keys.
    """
    return parsed(Provenance, read_json(path), path)


def this_session(device: str) -> Session:
    """Commit, versions, device and command of the running process."""
    commit, is_dirty = _commit()
    return Session(
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        command=["robust", *sys.argv[1:]],
        device=device,
        platform=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        # From the running code, because installed metadata may be missing or belong to another copy.
        versions={"robustcli": __version__, **{name: version_of(name) for name in _PACKAGES}},
        commit=commit,
        dirty=is_dirty,
    )


def version_of(package: str) -> str | None:
    """Version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> tuple[str | None, bool | None]:
    """Commit of the checkout of this code, and whether the code differs; None in an installed package."""
    here = Path(robustcli.__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return None, None
    try:
        return _git(here, "rev-parse", "HEAD"), bool(_git(here, "status", "--porcelain", "--", "robustcli"))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
