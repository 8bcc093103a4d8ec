"""Renamed keys and names of specs: former ones are accepted, and digests use them.

So specs, checkpoints and results of earlier versions stay valid. An evaluator declares its former name and those of its
parameters at its registration.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from robustcli.registry.catalog import catalog
from robustcli.specs.settings import EvaluateOptions

# Version that no longer accepts former names.
UNTIL = "0.3"
# Keys of a defense by their former names.
_OF_DEFENSE = {"regulariser": "regularizer"}
# Name of an evaluator -> its other name, and its keys by those that they replace.
_Words = Callable[[str], tuple[str, Mapping[str, str]]]


def current(value: Any) -> Any:
    """Return evaluations with current names instead of former ones."""
    return _worded(value, _today)


def former(value: Any) -> Any:
    """Return evaluations with the names of earlier versions."""
    return _worded(value, _before)


def understood(value: Any, source: str) -> Any:
    """Return evaluations with current names, and warn about former ones.

    Args:
        source: origin of the evaluations.
    """
    found = current(value)
    if found != value:
        gone = _written(value) - _written(found)
        _warn(f"{source}: evaluate", {old: new for old, new in _all().items() if old in gone})
    return found


def current_defense(value: Any) -> Any:
    """Return a defense with current keys instead of former ones."""
    return _worded(value, lambda name: (name, _OF_DEFENSE))


def former_defense(value: Any) -> Any:
    """Return a defense with the keys of earlier versions."""
    return _worded(value, lambda name: (name, {new: old for old, new in _OF_DEFENSE.items()}))


def understood_defense(value: Any, source: str) -> Any:
    """Return a defense with current keys, and warn about former ones.

    Args:
        source: origin of the defense.
    """
    found = current_defense(value)
    if found != value:
        _warn(f"{source}: defense", {old: new for old, new in _OF_DEFENSE.items() if old in value})
    return found


def _warn(where: str, renamed: Mapping[str, str]) -> None:
    words = ", ".join(f"'{old}' is now '{new}'" for old, new in renamed.items())
    warnings.warn(f"{where}: {words}; the former words are understood until {UNTIL}", stacklevel=4)


def as_written(keys: Sequence[str], value: Any) -> list[str]:
    """Return the keys of an override with the former key of a defense's part if the spec has that one, or vice versa.

    Args:
        value: the spec.
    """
    defense = value.get("defense") if isinstance(value, Mapping) else None
    if len(keys) < 2 or keys[0] != "defense" or not isinstance(defense, Mapping):
        return [*keys]
    other = {**_OF_DEFENSE, **{new: old for old, new in _OF_DEFENSE.items()}}.get(keys[1])
    return [keys[0], other, *keys[2:]] if other is not None and other in defense else [*keys]


def _worded(value: Any, words: _Words) -> Any:
    if isinstance(value, list | tuple):
        return [_worded(item, words) for item in value]
    if not isinstance(value, Mapping):
        return value
    name, keys = words(str(value.get("name")))
    # A mapping with both names keeps both, and the former one is rejected as unknown.
    found = {keys[key] if keys.get(key, key) not in value else key: _worded(item, words) for key, item in value.items()}
    return {**found, "name": name} if isinstance(value.get("name"), str) else found


def _today(name: str) -> tuple[str, Mapping[str, str]]:
    name = _names().get(name, name)
    return name, _keys(name)


def _before(name: str) -> tuple[str, Mapping[str, str]]:
    member = catalog("evaluators").get(name)
    return (member.formerly if member else "") or name, {new: old for old, new in _keys(name).items()}


@cache
def _names() -> dict[str, str]:
    """Names of evaluators by their former names."""
    return {member.formerly: name for name, member in catalog("evaluators").items() if member.formerly}


def _keys(name: str) -> dict[str, str]:
    """Parameters and options of an evaluator by their former names; empty for other members."""
    member = catalog("evaluators").get(name)
    return {} if member is None else {**EvaluateOptions.renamed, **member.renamed}


def _all() -> dict[str, str]:
    """All former names with their current ones."""
    keys = [_keys(name) for name in catalog("evaluators")]
    return {**_names(), **{old: new for each in keys for old, new in each.items()}}


def _written(value: Any) -> set[str]:
    """All keys and names in evaluations."""
    if isinstance(value, Mapping):
        return {str(value.get("name")), *map(str, value)}.union(*map(_written, value.values()))
    return set().union(*map(_written, value)) if isinstance(value, list | tuple) else set()
