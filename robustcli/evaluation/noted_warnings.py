"""Warnings about a number: collected for its result; those about single images are joined into one for all batches."""

import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from robustcli.evaluation.wording import first_numbers

# Image numbers that a warning lists.
_LISTED = 20
_ABOUT = re.compile(r"(.*): images ([0-9]+(?:, [0-9]+)*)", re.DOTALL)


@contextmanager
def noted_warnings() -> Iterator[list[str]]:
    """Collect warnings about the number inside, instead of printing them; the list is filled at the end."""
    noted: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        # Deprecation warnings are about code, not about the number.
        for category in (UserWarning, RuntimeWarning):
            warnings.simplefilter("always", category)
        yield noted
    noted += (str(warning.message) for warning in caught)


def joined(texts: Iterable[str]) -> tuple[str, ...]:
    """Join warnings "TEXT: images 3, 17" with the same text, and list at most 20 numbers; others stay as they are."""
    images: dict[str, list[int]] = {}
    for text in texts:
        found = _ABOUT.fullmatch(text)
        images.setdefault(found[1] if found else text, []).extend(
            int(number) for number in (found[2].split(", ") if found else ())
        )
    return tuple(f"{text}: {_listed(sorted(set(numbers)))}" if numbers else text for text, numbers in images.items())


def _listed(numbers: list[int]) -> str:
    return f"{len(numbers)} image{'s' * (len(numbers) > 1)} ({first_numbers(numbers, _LISTED)})"
