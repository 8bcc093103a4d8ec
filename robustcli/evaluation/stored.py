"""One evaluation and what is kept of it: journal while it goes on, then ledger, witnesses and result."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustcli.data import Data
from robustcli.evaluation.evaluate import evaluate, settled
from robustcli.evaluation.fingerprint import fingerprint
from robustcli.evaluation.journal import FolderJournal
from robustcli.evaluation.per_image import lines_of, write_ledger, write_witnesses
from robustcli.evaluators import Evaluator, files_of, is_hasty, looks_of, threat_of
from robustcli.registry.registry import MemberSpec
from robustcli.registry.types import exact_text
from robustcli.runtime.precision import emulation
from robustcli.specs.check import to_plain
from robustcli.store.files import read_json, write_json
from robustcli.threat.threat import ThreatModel


@dataclass(frozen=True)
class Dossier:
    """The files of one evaluation, in a folder that it shares with others.

    Args:
        folder: where they lie.
        key: name of the evaluation.
    """

    folder: Path
    key: str

    @property
    def result(self) -> Path:
        """What Result.to_json says, and a fingerprint; when it is there the evaluation is done."""
        return self.folder / f"{self.key}.json"

    @property
    def ledger(self) -> Path:
        return self.folder / f"{self.key}.csv"

    @property
    def witnesses(self) -> Path:
        return self.folder / f"{self.key}.witnesses.npz"

    @property
    def journal(self) -> Path:
        return self.folder / f"{self.key}.journal"


def warn_of_slow_search(evaluators: Iterable[Evaluator], device: torch.device) -> None:
    """Say once, before the work, that the haste which evaluators ask for is none on this device."""
    for text in dict.fromkeys(text for evaluator in evaluators for text in _slow_search(evaluator, device)):
        warnings.warn(text, stacklevel=2)


def _slow_search(evaluator: Evaluator, device: torch.device) -> list[str]:
    slow = emulation("precision: fast", "bf16", device, "precision: fp32") if is_hasty(evaluator) else None
    return [] if slow is None else [slow]


def evaluate_into(
    dossier: Dossier,
    chosen: MemberSpec,
    evaluator: Evaluator,
    data: Data,
    network: nn.Module,
    threat: ThreatModel,
    seed: int,
    *,
    stamps: Sequence[str] = (),
    expected_clean: float | None = None,
    share: tuple[int, int] | None = None,
) -> dict[str, Any] | None:
    """Evaluate a network on test images, or read what an earlier process found; begun work is gone on with.

    Args:
        stamps: warnings that go with every number of this network.
        expected_clean: clean accuracy on held-out images in training, if known.
        share: (i, n): strike the i-th of n shares of the images, for the journal alone; None does the rest, whatever
            that is, and writes the result.

    Returns:
        The result as plain data; None for a share.
    """
    if dossier.result.exists():
        if dossier.journal.exists() and share is None:
            FolderJournal(dossier.journal).remove()  # Killed when all was done but this.
        return dict(read_json(dossier.result))
    options, threat = chosen.options, threat_of(evaluator, threat)
    x, y = data.evaluation("test", options.examples if options else None)
    parameters = _as_text(to_plain(chosen.parameters))
    mark = fingerprint(network, x, y, threat, chosen.name, parameters, seed, files_of(evaluator))
    journal = FolderJournal.open(dossier.journal, mark)
    settings = (chosen.name, parameters, evaluator, network, x, y, threat, seed)
    if share is not None:
        # Of fewer images than shares the last shares have none.
        if share[0] < len(x):
            evaluate(*settings, journal=journal, share=share)
        return None
    result = evaluate(*settings, journal=journal, expected_clean=expected_clean)
    assert result.evidence is not None
    write_ledger(dossier.ledger, lines_of(result.evidence))
    if options and options.witnesses:
        with settled(network, x.device.type):
            write_witnesses(dossier.witnesses, result.evidence, network, x, y, looks_of(evaluator))
    stored = result.to_json()
    stored["warnings"] += [*stamps, *_slow_search(evaluator, x.device)]
    write_json(dossier.result, {**stored, "fingerprint": mark})
    journal.remove()
    return dict(read_json(dossier.result))


def _as_text(value: Any) -> Any:
    """Plain values with exact numbers as text, such as the radius of an evaluator's own threat: JSON has none."""
    if isinstance(value, dict):
        return {key: _as_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_text(item) for item in value]
    return exact_text(value) if isinstance(value, Fraction) else value
