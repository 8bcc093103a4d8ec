"""Facts about a checkpoint that its evaluation states."""

from collections.abc import Mapping
from typing import Any

SELECTED_ON_TEST = "the weights were selected on test images, so this number is too good"


def held_out_accuracy(record: Mapping[str, Any]) -> float | None:
    """Return the clean accuracy in the check of a checkpoint, unless it used training images."""
    return record.get("clean") if record.get("checked_on") in ("val", "test") else None
