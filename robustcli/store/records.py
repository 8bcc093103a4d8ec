"""Records of a training: checks of the weights, and the lines of train.jsonl."""

import json
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from robustcli.errors import RobustCliError
from robustcli.store.models import Stored, parsed

# Keys that are no measures.
_OWN = ("epoch", "seconds", "robust", "event", "text")


class CheckRecord(Stored):
    """Check of the weights after an epoch; empty within an epoch. Measures of the epoch are further keys.

    Args:
        epoch: number of the epoch, from 0.
        clean, robust, fgsm: accuracies: clean, under many steps, and under one step.
        checked_on: split of the images.
    """

    model_config = ConfigDict(extra="allow")

    epoch: int | None = None
    clean: float | None = None
    robust: float | None = None
    fgsm: float | None = None
    checked_on: str | None = None

    @property
    def held_out_accuracy(self) -> float | None:
        """The clean accuracy, unless training images were used."""
        return self.clean if self.checked_on in ("val", "test") else None

    def to_json(self) -> dict[str, Any]:
        """Keys and values as they were given."""
        return self.model_dump(exclude_unset=True)


class Record(CheckRecord):
    """Line of train.jsonl: an epoch with its measures and its check, or an event.

    Args:
        seconds: of training, without checks.
        event: collapsed, rewound or failed; None for an epoch.
        text: description of the event.
    """

    epoch: int
    seconds: float = 0.0
    event: str | None = None
    text: str = ""

    @property
    def measures(self) -> dict[str, Any]:
        """Measures of the defense and the check, by name."""
        return {name: value for name, value in self.to_json().items() if name not in _OWN}


def parse_record(line: str, path: Path, number: int) -> Record:
    """Record from a line of train.jsonl; path and line number are for messages."""
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RobustCliError(f"{path}: line {number}: not JSON: {error}") from error
    return parsed(Record, raw, f"{path}: line {number}")
