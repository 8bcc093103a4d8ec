"""The journal of an evaluation: the outcome of every call of an attack or a certifier, kept until all is done.

A folder contains one small file per call, which is written under a temporary name and then renamed. A killed process
loses only the call in progress, and several processes may write to one journal.
"""

import errno
import hashlib
import math
import re
import shutil
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustcli.errors import RobustCliError, in_one_line
from robustcli.evaluation.run_attack import AttackOutcome
from robustcli.evaluators import Certificate
from robustcli.store.arrays import UNREADABLE
from robustcli.store.files import own_mark, read_json, replacing, write_json

# Digits of the image number in a file name.
_DIGITS = 8
# Suffix of the adversarial images of an outcome: float32, one image after the other.
_POINTS = ".points"


class Journal:
    """Keeps the outcomes of attacks, so that a later process need not repeat them; this one keeps nothing."""

    def outcomes(self, stage: str, images: Container[int] | None = None) -> Iterable[AttackOutcome]:
        """Outcomes kept so far that contain any of these images; None means all images."""
        return ()

    def keep(self, outcome: AttackOutcome) -> AttackOutcome:
        """Write an outcome to disk, and return it with points mapped from there."""
        return outcome

    def certificate(self, numbers: Tensor) -> Certificate | None:
        """Certificate of exactly these images, if it was kept."""
        return None

    def keep_certificate(self, numbers: Tensor, certificate: Certificate) -> None:
        """Write the certificate of some images to disk."""


NO_JOURNAL = Journal()


@dataclass(frozen=True)
class FolderJournal(Journal):
    """A journal in a folder, for one evaluation.

    Args:
        path: path of the folder.
    """

    path: Path

    @classmethod
    def open(cls, path: Path, fingerprint: Mapping[str, Any]) -> "FolderJournal":
        """Open the journal at a path, or create it.

        Args:
            path: path of the folder.
            fingerprint: everything that the findings depend on, by name.

        Raises:
            RobustCliError: the journal belongs to another evaluation; the message lists the differences.
        """
        header = path / "fingerprint.json"
        if not header.exists():
            # Several processes may do this at once; all write the same.
            write_json(header, dict(fingerprint), mark=own_mark())
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

    def outcomes(self, stage: str, images: Container[int] | None = None) -> Iterator[AttackOutcome]:
        for path in sorted(self.path.glob(f"{_file_name(stage)}-{'[0-9]' * _DIGITS}.npz")):
            try:
                with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                    # The rest of a file may be large, and most files belong to other shards.
                    if images is not None and not any(number in images for number in stored["numbers"].tolist()):
                        continue
                    outcome = _read(stored, path.with_suffix(_POINTS))
            except UNREADABLE as error:
                raise _unreadable(path, error) from error
            yield outcome

    def keep(self, outcome: AttackOutcome) -> AttackOutcome:
        path = self.path / f"{_file_name(outcome.stage)}-{int(outcome.numbers[0]):0{_DIGITS}d}.npz"
        points = outcome.points
        if points is not None:
            # Written first, because the other file implies both. Uncompressed, so that it can be mapped into memory.
            with replacing(path.with_suffix(_POINTS), own_mark()) as file:
                file.write(points.contiguous().numpy().data)
        with replacing(path, own_mark()) as file:
            np.savez(
                file,
                stage=np.array(outcome.stage),
                numbers=outcome.numbers.numpy(),
                is_broken=outcome.is_broken.numpy(),
                predictions=outcome.predictions.numpy(),
                margins=outcome.margins.numpy(),
                sizes=outcome.sizes.numpy(),
                shape=np.array(() if points is None else points.shape, dtype=np.int64),
                passes=np.array([outcome.forwards, outcome.gradients]),
                seconds=np.array(outcome.seconds),
                warnings=np.array(outcome.warnings, dtype=np.str_),
            )
        return outcome if points is None else replace(outcome, points=_mapped(path.with_suffix(_POINTS), points.shape))

    def certificate(self, numbers: Tensor) -> Certificate | None:
        path = self._certificate_file(numbers)
        if not path.exists():
            return None
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                # With another batch size, other images begin with the same one.
                if stored["numbers"].tolist() != numbers.tolist():
                    return None
                abstained = int(stored["abstained"])
                return Certificate(
                    torch.from_numpy(stored["is_certified"]),
                    abstained=None if abstained < 0 else abstained,
                    chance=float(stored["chance"]),
                )
        except UNREADABLE as error:
            raise _unreadable(path, error) from error

    def keep_certificate(self, numbers: Tensor, certificate: Certificate) -> None:
        with replacing(self._certificate_file(numbers), own_mark()) as file:
            np.savez(
                file,
                numbers=numbers.cpu().numpy(),
                is_certified=certificate.is_certified.cpu().numpy(),
                abstained=np.array(-1 if certificate.abstained is None else certificate.abstained),
                chance=np.array(certificate.chance),
            )

    def _certificate_file(self, numbers: Tensor) -> Path:
        # With a dot, which names of stages do not have.
        return self.path / f"certificates.{int(numbers[0]):0{_DIGITS}d}.npz"

    def remove(self) -> None:
        """Delete the journal after the evaluation was stored."""
        try:
            shutil.rmtree(self.path)
        except OSError as error:
            # On NFS a memory-mapped file keeps another name, and its folder, until this process ends.
            if error.errno not in (errno.ENOTEMPTY, errno.EBUSY):
                raise


def _unreadable(path: Path, error: Exception) -> RobustCliError:
    return RobustCliError(f"{path}: cannot be read ({in_one_line(error)}); remove this file to repeat its images")


def _read(stored: Mapping[str, Any], points: Path) -> AttackOutcome:
    """Parse an outcome; `points` is the file of its adversarial images, if they were kept."""
    return AttackOutcome(
        stage=str(stored["stage"]),
        numbers=torch.from_numpy(stored["numbers"]),
        is_broken=torch.from_numpy(stored["is_broken"]),
        predictions=torch.from_numpy(stored["predictions"]),
        margins=torch.from_numpy(stored["margins"]),
        sizes=torch.from_numpy(stored["sizes"]),
        points=_mapped(points, stored["shape"].tolist()) if len(stored["shape"]) else None,
        forwards=int(stored["passes"][0]),
        gradients=int(stored["passes"][1]),
        seconds=float(stored["seconds"]),
        warnings=tuple(str(text) for text in stored["warnings"]),
    )


def _mapped(path: Path, shape: Sequence[int]) -> Tensor:
    """Map the adversarial images of a file into memory as a tensor."""
    size = math.prod(shape)
    if path.stat().st_size != 4 * size:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes, not {4 * size}")
    # A private mapping that does not keep the file open, because there may be thousands of files.
    return torch.from_file(str(path), size=size, dtype=torch.float32).view(*shape) if size else torch.zeros(*shape)


def _file_name(stage: str) -> str:
    """File name of a stage; a digest distinguishes names that differ only in replaced characters."""
    kept = re.sub(r"[^a-z0-9_-]+", "_", stage.lower())
    return kept if kept == stage else f"{kept}-{hashlib.sha256(stage.encode()).hexdigest()[:8]}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
