"""Facts about a checkpoint that its evaluation states."""

from collections.abc import Mapping
from typing import Any

SELECTED_ON_TEST = "the weights were selected on test images, which flatters this number"


def held_out_accuracy(record: Mapping[str, Any]) -> float | None:
    """Clean accuracy in the check that a checkpoint keeps, unless it was of images that were trained on."""
    return record.get("clean") if record.get("checked_on") in ("val", "test") else None
