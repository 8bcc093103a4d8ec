"""Format measurements as text."""

from collections.abc import Mapping
from typing import Any


def format_megabytes(row: Mapping[str, Any]) -> str:
    """Return the peak memory of a row in 10^6 bytes, or "" if it is not stored."""
    return f"{row['peak_bytes'] / 1e6:,.1f}" if "peak_bytes" in row else ""


def format_ratio(ratio: Mapping[str, float] | None) -> str:
    """Return median, minimum and maximum of a ratio, or "" for None."""
    return "" if ratio is None else f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})"
