"""`robust train --resume` without a run of this spec: continue a shorter run, or report existing runs."""

from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from robustcli.errors import RobustCliError
from robustcli.registry.registry import MemberSpec
from robustcli.specs.places import Where, members_inside
from robustcli.specs.spec import ExperimentSpec
from robustcli.store import files
from robustcli.store.checkpoint import ResumableCheckpoint
from robustcli.store.provenance import read_provenance
from robustcli.store.runs import RunFolder, differences, folder_of, locked
from robustcli.training.collapse import has_collapsed

_MOST = 3


def prepare_to_resume(root: Path, spec: ExperimentSpec) -> str | None:
    """Create the folder of a spec from a run with fewer epochs and otherwise the same spec.

    If there are several such runs, the one with the most updates is used.

    Returns:
        A description of what was found instead of the run; None if the run itself exists.

    Raises:
        RobustCliError: a run with fewer epochs exists but cannot be continued; the message says why.
    """
    folder = folder_of(root, spec)
    if folder.spec.is_file():
        return None
    shorter = max(_shorter(folder, spec), key=lambda one: one.updates, default=None)
    if shorter is None:
        return _what_is_there(folder, spec)
    reason = _obstacle(shorter, spec)
    if reason is not None:
        raise RobustCliError(
            f"--resume: {shorter.folder.path} has train.epochs {shorter.epochs}, this spec {spec.train.epochs}; it "
            f"cannot be continued, because {reason}. Without --resume a new run begins; "
            f"train.start_from={shorter.folder.last} lets it start from these weights"
        )
    _copy(shorter, folder, spec)
    return (
        f"--resume: continues {shorter.folder.path}, which has train.epochs {shorter.epochs}, in {folder.path} after "
        f"{shorter.updates} updates"
    )


@dataclass(frozen=True)
class _Shorter:
    """A run of the same spec with fewer epochs.

    Args:
        last: its last checkpoint.
    """

    folder: RunFolder
    epochs: int
    last: ResumableCheckpoint

    @property
    def updates(self) -> int:
        return self.last.training.updates


def _of_same_name(folder: RunFolder) -> Iterator[tuple[RunFolder, ExperimentSpec]]:
    """Readable runs of the same name with their specs."""
    for path in sorted(folder.path.parent.glob("*/spec.yaml")):
        with suppress(RobustCliError):
            yield RunFolder(path.parent), ExperimentSpec.read_stored(path)


def _shorter(folder: RunFolder, spec: ExperimentSpec) -> Iterator[_Shorter]:
    for other, stored in _of_same_name(folder):
        longer = replace(stored, train=replace(stored.train, epochs=spec.train.epochs))
        is_same = (longer.digest, longer.seed) == (spec.digest, spec.seed)
        if is_same and stored.train.epochs < spec.train.epochs and other.last.is_file():
            yield _Shorter(other, stored.train.epochs, ResumableCheckpoint.read(other.last))


def _obstacle(shorter: _Shorter, spec: ExperimentSpec) -> str | None:
    """Return why a longer run would differ from the shorter one from its start; None if it would not."""
    if shorter.last.training.is_over:
        return "it ended early, at the weights before its robustness collapsed"
    spanning = [f"{'.'.join(map(str, where))}: {part.name}" for where, part in _spanning(spec)]
    if not spanning:
        return None
    follow = "follows" if len(spanning) == 1 else "follow"
    return f"{' and '.join(spanning)} {follow} the whole of training, so its first epochs are others in a longer run"


def _spanning(spec: ExperimentSpec) -> Iterator[tuple[Where, MemberSpec]]:
    for where, part in ((("train", "schedule"), spec.train.schedule), (("defense",), spec.defense)):
        yield from ((place, chosen) for place, chosen in members_inside(part, where) if chosen.member.spans_training)


def _copy(shorter: _Shorter, folder: RunFolder, spec: ExperimentSpec) -> None:
    """Copy the progress of the shorter run to the folder of the longer one; the spec comes last and makes it valid."""
    # A finished run does not change, and its folder may be read-only.
    other = nullcontext() if shorter.folder.is_finished else locked(shorter.folder.path)
    with locked(folder.path), other:
        known = read_provenance(shorter.folder.provenance)
        origin = f"{shorter.folder.path} (train.epochs {shorter.epochs}, {shorter.updates} updates)"
        files.write_json(folder.provenance, known.model_copy(update={"continued_from": origin}).to_json())
        if shorter.folder.log.is_file():
            files.copy(shorter.folder.log, folder.log)
        for source, target in ((shorter.folder.best, folder.best), (shorter.folder.last, folder.last)):
            checkpoint = ResumableCheckpoint.read(source)
            training = checkpoint.training
            # The last epoch of a run is checked more strictly, but here it is no longer the last one.
            is_last = training.collapsed_at == shorter.epochs - 1
            if is_last and not has_collapsed(checkpoint.check, training.best_robust):
                training = training.model_copy(update={"collapsed_at": None})
            checkpoint.model_copy(update={"spec": spec.to_yaml(), "training": training}).write(target)
        files.write_text(folder.spec, spec.to_yaml())


def _what_is_there(folder: RunFolder, spec: ExperimentSpec) -> str:
    """Describe the runs of the same name."""
    others = [(other, differences(stored, spec)) for other, stored in _of_same_name(folder)]
    # The most similar first.
    others.sort(key=lambda pair: len(pair[1]))
    if not others:
        return f"--resume: found no run in {folder.path.parent}; training starts from the beginning"
    shown = "; ".join(f"{other.path.name} with {_as_text(found)}" for other, found in others[:_MOST])
    more = f"; and {len(others) - _MOST} more" if len(others) > _MOST else ""
    return (
        f"--resume: there is no {folder.path}; {folder.path.parent} has {shown}{more}. Training starts from the "
        "beginning"
    )


def _as_text(found: dict[str, Any]) -> str:
    parts = [f"{key} {value}" for key, value in list(found.items())[:_MOST]]
    return ", ".join([*parts, *(["..."] if len(found) > _MOST else [])]) or "the same settings by another version"
