"""The shipped specs and sweeps: next to the package in a checkout, inside an installed package."""

import os
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

import robustcli
from robustcli.errors import RobustCliError, suggest

# Folders of files with several specs.
_SWEEPS = "sweeps/"
_FINDINGS = "findings/"
_SPEEDRUNS = "speedrun/"


def folder() -> Path:
    """Return the folder of the shipped specs."""
    package = Path(robustcli.__file__).parent
    inside = package / "experiments"
    return inside if inside.is_dir() else package.parent / "experiments"


def names() -> list[str]:
    """Names of the shipped specs, such as "cifar10/pgd_at"."""
    return [name for name in _files() if not name.startswith((_SWEEPS, _FINDINGS, _SPEEDRUNS))]


def sweeps() -> list[str]:
    """Names of the shipped sweeps, such as "sweeps/mnist_defenses"."""
    return [name for name in _files() if name.startswith(_SWEEPS)]


def findings() -> list[str]:
    """Names of the shipped findings, sweeps that test the claim of a paper, such as "findings/awp"."""
    return [name for name in _files() if name.startswith(_FINDINGS)]


def find(name: str) -> Path:
    """Return the file of a spec or sweep: a path, a shipped name, or the last part of a unique name.

    Raises:
        RobustCliError: there is none, or there are several.
    """
    path = Path(name)
    if name and path.is_dir():
        inside = _spec_inside(path)
        raise RobustCliError(f"{name}: is a folder; expected the YAML file of a spec{inside}")
    if name == "-" or (name and path.exists() and not path.is_file()):
        raise RobustCliError(f"{name}: not a file, and a spec is read more than once; write it into a file")
    if path.is_symlink() and not path.exists():
        raise RobustCliError(f"{name}: a link to {os.readlink(path)}, which does not exist")
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if path.is_file():
            return path
        if not (folder() / path).is_file():
            raise RobustCliError(f"{name}: no such file{_nearest(path)}")
        return folder() / path
    matches = [known for known in _files() if known == name or known.rpartition("/")[2] == name]
    if len(matches) == 1:
        return folder() / f"{matches[0]}.yaml"
    if matches:
        raise RobustCliError(f"experiment '{name}' is not one but several: {', '.join(matches)}")
    raise RobustCliError(f"unknown experiment '{name}'{suggest(name, _files())}")


def _spec_inside(folder: Path) -> str:
    """The end of a message: the spec of a run in a folder, or in one two levels below; empty if there is none."""
    with suppress(OSError):
        specs = (path for pattern in ("", "*/", "*/*/") for path in folder.glob(f"{pattern}spec.yaml"))
        return next((f", such as {path}" for path in specs), "")
    return ""


def _nearest(path: Path) -> str:
    """The end of a message: the nearest file in the same folder, otherwise the nearest shipped specs."""
    files = [file.as_posix() for file in (*path.parent.glob("*.yaml"), *path.parent.glob("*.yml"))]
    if near := get_close_matches(path.as_posix(), files, n=1, cutoff=0.75):
        return f"; did you mean '{near[0]}'?"
    return suggest(path.with_suffix("").as_posix(), _files())


def summary(name: str) -> str:
    """First comment line of a shipped spec or sweep."""
    with (folder() / f"{name}.yaml").open(encoding="utf-8") as file:
        first = file.readline().strip()
    return first.removeprefix("#").strip()


def _files() -> list[str]:
    return sorted(path.relative_to(folder()).with_suffix("").as_posix() for path in folder().rglob("*.yaml"))
