"""Problems of a choice that an override changed by its name only, which keeps the settings of the former choice."""

from collections.abc import Mapping, Sequence
from typing import Any

from robustcli.specs.places import Where
from robustcli.specs.yamlfile import Document

_OVERRIDE = "override "


def gathered(document: Document, problems: Sequence[tuple[Where, str]]) -> list[tuple[Where, str]]:
    """Replace the problems of settings that `KEY.name=NAME` kept by one that says how to replace the whole part."""
    left = list(problems)
    for path, place in document.places.items():
        part = path[:-1]
        if not part or path[-1] != "name" or not place.startswith(_OVERRIDE):
            continue
        about = [problem for problem in left if _is_kept(document, part, problem[0])]
        if not about:
            continue
        unfit = list(dict.fromkeys(str(where[len(part)]) for where, _ in about))
        chosen = _at(document.value, path)
        text = f"'{chosen}' does not take {_listed(unfit)}, which the spec sets for another choice"
        # A part of a list has no key that an override could replace.
        if all(isinstance(key, str) for key in part):
            key = ".".join(map(str, part))
            others = [other for other in _at(document.value, part) if _is_kept(document, part, (*part, other))]
            lost = _listed([other for other in others if other not in ("name", *unfit)])
            text += (
                f"; write {key}={chosen} instead{f', which also drops {lost}; repeat what should stay' if lost else ''}"
            )
        left = [problem for problem in left if problem not in about]
        left.append((path, text))
    return left


def _is_kept(document: Document, part: Where, where: Where) -> bool:
    """Return True for a place in a setting of a part that no override has written."""
    setting = where[: len(part) + 1]
    if where[: len(part)] != part or setting == part or setting[-1] not in _at(document.value, part):
        return False
    return not document.places.get(setting, "").startswith(_OVERRIDE)


def _at(value: Any, path: Sequence[str | int]) -> Any:
    for key in path:
        value = value[key] if isinstance(value, Mapping) else value[int(key)]
    return value


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))
