"""Grids on the command line: `seed=0,1,2 defense.beta=1,3` -> the overrides of every combination."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from robustcli.errors import RobustCliError
from robustcli.specs.yamlfile import parse_scalar

_RANGE = re.compile(r"([0-9]{1,6})\.\.([0-9]{1,6})")
_OPENING, _CLOSING = "[{(", "]})"


@dataclass(frozen=True)
class Grid:
    """Overrides of a command, divided into those of every run and those that make a grid.

    Args:
        fixed: overrides with one value.
        axes: the other keys with their values, as text; without `seed`.
        seeds: values of `seed`; empty if it is not given.
    """

    fixed: tuple[str, ...] = ()
    axes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()

    @property
    def is_grid(self) -> bool:
        """True if there is more than one combination."""
        return bool(self.axes) or len(self.seeds) > 1

    def rows(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yield name and overrides of every combination, without seeds; the last key varies fastest."""
        keys = list(self.axes)
        lasts = [key.rpartition(".")[2] for key in keys]
        short = [last if lasts.count(last) == 1 else key for key, last in zip(keys, lasts, strict=True)]
        for values in product(*(self.axes[key] for key in keys)):
            name = ",".join(f"{key}={value}" for key, value in zip(short, values, strict=True))
            chosen = tuple(f"{key}={value}" for key, value in zip(keys, values, strict=True))
            yield name, (*self.fixed, *chosen)


def read_grid(overrides: Sequence[str]) -> Grid:
    """Divide overrides into those with one value and those with several.

    Several values are separated by commas, or are a range of whole numbers such as 0..4. A comma inside brackets or
    quotes does not separate: `[1, 2]` and `"a, b"` are one value.

    Raises:
        RobustCliError: a value is empty or named twice, or a seed is not a whole number.
    """
    fixed: list[str] = []
    axes: dict[str, tuple[str, ...]] = {}
    seeds: tuple[int, ...] = ()
    for override in overrides:
        key, _, text = override.partition("=")
        values = _values(text)
        if len(values) > 1:
            if not all(values):
                raise RobustCliError(f"override '{override}': found an empty value; expected {key}=A,B")
            parsed = [repr(parse_scalar(value)) for value in values]
            if twice := [value for number, value in enumerate(values) if parsed[number] in parsed[:number]]:
                raise RobustCliError(f"override '{override}': names {', '.join(twice)} twice")
        if key == "seed":
            seeds = tuple(_seed(value, override) for value in values)
        elif len(values) > 1:
            axes[key] = values
        else:
            fixed.append(override)
    return Grid(tuple(fixed), axes, seeds)


def _seed(text: str, override: str) -> int:
    value = parse_scalar(text)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise RobustCliError(f"override '{override}': '{text}' is not a whole number of at least 0")
    return value


def _values(text: str) -> tuple[str, ...]:
    """Values that commas outside brackets and quotes separate, or those of a range."""
    if found := _RANGE.fullmatch(text):
        first, last = int(found[1]), int(found[2])
        if first < last:
            return tuple(map(str, range(first, last + 1)))
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"" and not parts[-1].strip():
            quote = letter
        else:
            depth += (letter in _OPENING) - (letter in _CLOSING)
        if letter == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    # A bracket or quote that is never closed is reported by the parser, with the whole text.
    return (text,) if depth or quote or len(parts) == 1 else tuple(part.strip() for part in parts)
