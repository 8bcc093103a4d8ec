"""`robust train --resume` without a run to resume: what is there instead."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robustcli.errors import RobustCliError
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.runs import RunFolder, differences, folder_of

_MOST = 3


def without_run(root: Path, spec: ExperimentSpec) -> str | None:
    """Describe what is in the folder of a spec's runs if its own run is not; None if there is something to resume.

    Raises:
        RobustCliError: there is a run that differs only in train.epochs; says why it is not continued.
    """
    folder = folder_of(root, spec)
    if folder.spec.is_file():
        return None
    others = list(_others(folder, spec))
    for other, found in others:
        if set(found) == {"train.epochs"}:
            raise RobustCliError(
                f"--resume: {other.path} has train.epochs {found['train.epochs']}, this spec {spec.train.epochs}; "
                "such a run is not continued, because the learning rates of its schedule and the drawing of its images "
                "depend on the number of epochs. Leave out --resume to train a new run from the beginning"
            )
    if not others:
        return f"--resume: found no run in {folder.path.parent}; training starts from the beginning"
    shown = "; ".join(f"{other.path.name} with {_as_text(found)}" for other, found in others[:_MOST])
    more = f"; and {len(others) - _MOST} more" if len(others) > _MOST else ""
    return (
        f"--resume: there is no {folder.path}; {folder.path.parent} has {shown}{more}. Training starts from the "
        "beginning"
    )


def _others(folder: RunFolder, spec: ExperimentSpec) -> Iterator[tuple[RunFolder, dict[str, Any]]]:
    """Readable runs of the same name with their different values, the most similar first."""
    found = []
    for path in sorted(folder.path.parent.glob("*/spec.yaml")):
        other = RunFolder(path.parent)
        try:
            found.append((other, differences(other, spec)))
        except RobustCliError:
            continue
    yield from sorted(found, key=lambda pair: len(pair[1]))


def _as_text(found: dict[str, Any]) -> str:
    parts = [f"{key} {value}" for key, value in list(found.items())[:_MOST]]
    return ", ".join([*parts, *(["..."] if len(found) > _MOST else [])]) or "the same settings by another version"
