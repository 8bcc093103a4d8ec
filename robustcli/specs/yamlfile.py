"""YAML for specs: plain values with their line numbers, and stricter than YAML 1.1.

`8/255` and `1e-4` are numbers, `no`, `on` and `1:30` are text, and a key written twice is an error. `<<: *name` copies
the keys of the mapping with the anchor `name`; keys that are written next to it replace copied ones.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml

from robustcli.errors import RobustCliError, SpecError
from robustcli.registry.types import Ratio, exact_text
from robustcli.specs.places import Where

_NULL = re.compile(r"^(?:null|~|)$")
_BOOL = re.compile(r"^(?:true|false)$")
_INT = re.compile(r"^[-+]?[0-9]+$")
_FLOAT = re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$")
_RATIO = re.compile(r"^[-+]?[0-9]+(?:\.[0-9]*)? ?/ ?[0-9]+(?:\.[0-9]*)?$")
# Longer text is not a number; both parts of a shorter quotient fit into a float.
_LONGEST = 300
DEEPEST = 50
# Nested anchors can make a short file expand to more values than fit into memory.
_MOST_VALUES = 100_000


@dataclass(frozen=True)
class Document:
    """A parsed file: its value, and the place of each part.

    Args:
        source: the file's name, for messages.
        value: dictionaries, lists and plain values.
        places: "line 12" or "override a.b=1" by the path of each value.
    """

    source: str
    value: Any
    places: dict[Where, str]


def read_yaml(path: Path) -> Document:
    """Parse a file.

    Raises:
        RobustCliError: there is no such file, or it is not text.
        SpecError: it is not YAML, or a key is written twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RobustCliError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise RobustCliError(f"{path}: cannot be read as text; expected a YAML file") from error
    except OSError as error:
        raise RobustCliError(f"{path}: cannot be read as text: {error}") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> Document:
    """Parse text; `source` is for messages."""
    places: dict[Where, str] = {}
    problems: list[str] = []
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        hint = "; indent with spaces instead of tabs" if "'\\t'" in problem else ""
        raise SpecError(source, [f"{where}not YAML: {problem}{hint}"]) from error
    except RecursionError:
        raise SpecError(source, [_too_deep()]) from None
    try:
        value = _construct(node, (), places, problems, ()) if node is not None else None
    except _TooLargeError:
        raise SpecError(
            source, [f"holds more than {_MOST_VALUES:,} values, or anchors that repeat each other"]
        ) from None
    if problems:
        raise SpecError(source, problems)
    return Document(source, value, places)


def parse_scalar(text: str) -> Any:
    """Parse a single value, such as the right side of an override."""
    return parse_yaml(text, text).value


class _TooLargeError(Exception):
    """There are too many values."""


def _construct(
    node: yaml.Node, path: Where, places: dict[Where, str], problems: list[str], around: tuple[yaml.Node, ...]
) -> Any:
    places[path] = f"line {node.start_mark.line + 1}"
    if len(places) > _MOST_VALUES:
        raise _TooLargeError
    if len(path) > DEEPEST:
        problems.append(f"{places[path]}: {_too_deep()}")
        return None
    if any(node is outer for outer in around):
        problems.append(f"{places[path]}: {'.'.join(map(str, path))}: an anchor inside itself")
        return None
    around = (*around, node)
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        written = set()
        for merged in _merged(node, problems):
            # None if there was a problem.
            mapping = {**(_construct(merged, path, places, problems, around) or {}), **mapping}
        places[path] = f"line {node.start_mark.line + 1}"
        for key_node, value_node in node.value:
            if _is_merge(key_node):
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                problems.append(
                    f"line {key_node.start_mark.line + 1}: a key that is a list or a mapping; expected text"
                )
                continue
            key = str(key_node.value)
            if key in written:
                line = key_node.start_mark.line + 1
                problems.append(f"line {line}: {'.'.join(map(str, (*path, key)))}: written twice")
            written.add(key)
            mapping[key] = _construct(value_node, (*path, key), places, problems, around)
            places[(*path, key)] = f"line {key_node.start_mark.line + 1}"
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_construct(item, (*path, i), places, problems, around) for i, item in enumerate(node.value)]
    assert isinstance(node, yaml.ScalarNode)
    return _scalar(node.value) if node.style is None else node.value


def _is_merge(key: yaml.Node) -> bool:
    """Return True for `<<`, whose value holds keys to be copied; in quotes it is an ordinary key."""
    return isinstance(key, yaml.ScalarNode) and key.value == "<<" and key.style is None


def _merged(node: yaml.MappingNode, problems: list[str]) -> Iterator[yaml.MappingNode]:
    """The mappings whose keys are copied into this one; keys of earlier ones win."""
    for key, value in node.value:
        if not _is_merge(key):
            continue
        for part in value.value if isinstance(value, yaml.SequenceNode) else [value]:
            if isinstance(part, yaml.MappingNode):
                yield part
            else:
                problems.append(f"line {part.start_mark.line + 1}: <<: expected a mapping, such as an alias *name")


def _too_deep() -> str:
    return f"nested too deeply; expected at most {DEEPEST} levels"


def _scalar(text: str) -> Any:
    if len(text) > _LONGEST:
        return text
    if _NULL.match(text):
        return None
    if _BOOL.match(text):
        return text == "true"
    if _INT.match(text):
        return int(text)
    if _FLOAT.match(text):
        number = float(text)
        return number if math.isfinite(number) else text
    if _RATIO.match(text):
        above, below = (Fraction(part) for part in text.split("/"))
        return Ratio(above / below) if below else text
    return text


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Plain values inside mappings and lists, by their dotted keys."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield name, value
        return
    for key, item in items:
        yield from flat(item, f"{name}.{key}".lstrip("."))


def plain_text(value: Any) -> str:
    """A plain value as a spec writes it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def to_yaml(value: Any) -> str:
    """Return text that `parse_yaml` reads as an equal value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    """Quote text that would be read as another type."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.Node:
    style = None if isinstance(_scalar(text), str) else "'"
    if not text.isprintable():
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _represent_float(dumper: _Dumper, number: float) -> yaml.Node:
    return _unquoted(dumper, repr(float(number)))


def _represent_fraction(dumper: _Dumper, fraction: Fraction) -> yaml.Node:
    return _unquoted(dumper, exact_text(fraction))


def _unquoted(dumper: _Dumper, text: str) -> yaml.Node:
    # The tag that PyYAML would read for the text: it reads 1e-05 and 8/255 as text, and would quote them.
    tag = dumper.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    return dumper.represent_scalar(tag, text)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(float, _represent_float)
_Dumper.add_representer(Ratio, _represent_float)
_Dumper.add_representer(Fraction, _represent_fraction)
