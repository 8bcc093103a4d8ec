"""The journal of an evaluation: what every call of an attack came to, kept until the evaluation is done.

A folder of small files, one per call, each written beside its final name and renamed: a process that is killed at
any moment loses the call it was in and no more, and several processes may write to one journal.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

from robustcli.errors import RobustCliError
from robustcli.evaluation.outcomes import Strike
from robustcli.store.files import read_json, replacing, write_json

# Of the image number in a file's name.
_DIGITS = 8


@dataclass(frozen=True)
class FolderJournal:
    """A journal in a folder, for one evaluation and no other.

    Args:
        path: of the folder.
    """

    path: Path

    @classmethod
    def open(cls, path: Path, fingerprint: Mapping[str, Any]) -> "FolderJournal":
        """Go on with the journal at a path, or begin one.

        Args:
            path: of the folder.
            fingerprint: all that the findings depend on, by name.

        Raises:
            RobustCliError: the journal there belongs to another evaluation; names what differs.
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
                f"{path}: is the journal of another evaluation: {differences}. Remove the folder to begin anew"
            )
        return cls(path)

    def strikes(self, stage: str) -> Iterator[Strike]:
        for path in sorted(self.path.glob(f"{_file_name(stage)}-{'[0-9]' * _DIGITS}.npz")):
            try:
                with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                    yield _read(stored)
            except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
                raise RobustCliError(
                    f"{path}: cannot be read ({error}); remove this file to repeat its part"
                ) from error

    def keep(self, strike: Strike) -> None:
        path = self.path / f"{_file_name(strike.stage)}-{int(strike.numbers[0]):0{_DIGITS}d}.npz"
        with replacing(path, _own_mark()) as file:
            np.savez(
                file,
                stage=np.array(strike.stage),
                numbers=strike.numbers.numpy(),
                is_broken=strike.is_broken.numpy(),
                predictions=strike.predictions.numpy(),
                margins=strike.margins.numpy(),
                sizes=strike.sizes.numpy(),
                points=strike.points.numpy(),
                passes=np.array([strike.forwards, strike.gradients]),
                seconds=np.array(strike.seconds),
                warnings=np.array(strike.warnings, dtype=np.str_),
            )

    def remove(self) -> None:
        """The evaluation is stored; the journal has done its work."""
        shutil.rmtree(self.path)


def _read(stored: Mapping[str, Any]) -> Strike:
    return Strike(
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
    """Ends the names of this process's half-written files."""
    return f"writing-{os.getpid()}"


def _file_name(stage: str) -> str:
    """The name of a stage, cut to what every file system keeps apart; of one that is cut, a digest keeps it apart."""
    kept = re.sub(r"[^a-z0-9_-]+", "_", stage.lower())
    return kept if kept == stage else f"{kept}-{hashlib.sha256(stage.encode()).hexdigest()[:8]}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
