"""The journal of an evaluation: the outcome of every call of an attack, kept until the evaluation is done.

A folder holds one small file per call, which is written under another name and then renamed. A process that is killed
loses only the call it was in, and several processes may write to one journal.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from robustcli.errors import RobustCliError, in_one_line
from robustcli.evaluation.run_attack import AttackOutcome
from robustcli.store.arrays import UNREADABLE
from robustcli.store.files import read_json, replacing, write_json

# Digits of the image number in a file name.
_DIGITS = 8


class Journal(Protocol):
    """Keeps the outcomes of attacks, so that a later process need not repeat them."""

    def outcomes(self, stage: str) -> Iterable[AttackOutcome]:
        """The outcomes kept so far."""
        ...

    def keep(self, outcome: AttackOutcome) -> None:
        """Keep one more outcome; it is on disk when this returns."""
        ...


class NullJournal:
    """A journal that keeps nothing."""

    def outcomes(self, stage: str) -> Iterable[AttackOutcome]:
        return ()

    def keep(self, outcome: AttackOutcome) -> None:
        pass


@dataclass(frozen=True)
class FolderJournal:
    """A journal in a folder, for one evaluation and no other.

    Args:
        path: of the folder.
    """

    path: Path

    @classmethod
    def open(cls, path: Path, fingerprint: Mapping[str, Any]) -> "FolderJournal":
        """Open the journal at a path, or begin one.

        Args:
            path: of the folder.
            fingerprint: everything that the findings depend on, by name.

        Raises:
            RobustCliError: the journal there belongs to another evaluation; says what differs.
        """
        header = path / "fingerprint.json"
        if not header.exists():
            # Several processes may begin at once, and all write the same.
            write_json(header, dict(fingerprint), mark=_own_mark())
        found = read_json(header)
        names = [name for name in {**fingerprint, **found} if fingerprint.get(name) != found.get(name)]
        if names:
            differences = "; ".join(
                f"{name}: the journal has {_short(found.get(name))}, this evaluation {_short(fingerprint.get(name))}"
                for name in names
            )
            raise RobustCliError(
                f"{path}: belongs to another evaluation: {differences}; remove the folder to start over"
            )
        return cls(path)

    def outcomes(self, stage: str) -> Iterator[AttackOutcome]:
        for path in sorted(self.path.glob(f"{_file_name(stage)}-{'[0-9]' * _DIGITS}.npz")):
            try:
                with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                    outcome = _read(stored)
            except UNREADABLE as error:
                raise RobustCliError(
                    f"{path}: cannot be read ({in_one_line(error)}); remove this file to repeat its images"
                ) from error
            yield outcome

    def keep(self, outcome: AttackOutcome) -> None:
        path = self.path / f"{_file_name(outcome.stage)}-{int(outcome.numbers[0]):0{_DIGITS}d}.npz"
        with replacing(path, _own_mark()) as file:
            np.savez(
                file,
                stage=np.array(outcome.stage),
                numbers=outcome.numbers.numpy(),
                is_broken=outcome.is_broken.numpy(),
                predictions=outcome.predictions.numpy(),
                margins=outcome.margins.numpy(),
                sizes=outcome.sizes.numpy(),
                points=outcome.points.numpy(),
                passes=np.array([outcome.forwards, outcome.gradients]),
                seconds=np.array(outcome.seconds),
                warnings=np.array(outcome.warnings, dtype=np.str_),
            )

    def remove(self) -> None:
        """Delete the journal, once the evaluation is stored."""
        shutil.rmtree(self.path)


def _read(stored: Mapping[str, Any]) -> AttackOutcome:
    return AttackOutcome(
        stage=str(stored["stage"]),
        numbers=torch.from_numpy(stored["numbers"]),
        is_broken=torch.from_numpy(stored["is_broken"]),
        predictions=torch.from_numpy(stored["predictions"]),
        margins=torch.from_numpy(stored["margins"]),
        sizes=torch.from_numpy(stored["sizes"]),
        points=torch.from_numpy(stored["points"]),
        forwards=int(stored["passes"][0]),
        gradients=int(stored["passes"][1]),
        seconds=float(stored["seconds"]),
        warnings=tuple(str(text) for text in stored["warnings"]),
    )


def _own_mark() -> str:
    """Suffix of the half-written files of this process."""
    return f"writing-{os.getpid()}"


def _file_name(stage: str) -> str:
    """A file name for a stage; a digest keeps names apart that differ only in characters which are replaced."""
    kept = re.sub(r"[^a-z0-9_-]+", "_", stage.lower())
    return kept if kept == stage else f"{kept}-{hashlib.sha256(stage.encode()).hexdigest()[:8]}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
