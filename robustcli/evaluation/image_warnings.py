"""Warnings about single images: those of all batches are joined into one."""

import re
from collections.abc import Iterable

# Image numbers that a warning lists.
_LISTED = 20
_ABOUT = re.compile(r"(.*): images ([0-9]+(?:, [0-9]+)*)", re.DOTALL)


def joined(warnings: Iterable[str]) -> tuple[str, ...]:
    """Join warnings "TEXT: images 3, 17" with the same text, and list at most 20 numbers; others stay as they are."""
    images: dict[str, list[int]] = {}
    for warning in warnings:
        found = _ABOUT.fullmatch(warning)
        images.setdefault(found[1] if found else warning, []).extend(
            int(number) for number in (found[2].split(", ") if found else ())
        )
    return tuple(f"{text}: {_listed(sorted(set(numbers)))}" if numbers else text for text, numbers in images.items())


def _listed(numbers: list[int]) -> str:
    more = len(numbers) - _LISTED
    shown = ", ".join(map(str, numbers[:_LISTED]))
    count = f"{len(numbers)} image{'s' * (len(numbers) > 1)}"
    return f"{count} ({shown}{f' and {more} more' if more > 0 else ''})"
