"""Measurements as text."""

from collections.abc import Mapping
from typing import Any


def megabytes(row: Mapping[str, Any]) -> str:
    """The peak of a row in 10^6 bytes; nothing where none was stored."""
    return f"{row['peak_bytes'] / 1e6:,.1f}" if "peak_bytes" in row else ""


def ratio_words(ratio: Mapping[str, float] | None) -> str:
    """Median, least and largest of a ratio; nothing for what is not compared."""
    return "" if ratio is None else f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})"
