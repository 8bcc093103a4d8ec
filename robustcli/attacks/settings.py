"""Settings of attacks and other parts, where they have them."""

from dataclasses import fields, is_dataclass, replace
from typing import Any

from robustcli.attacks import Attack


def has_setting(part: object, name: str) -> bool:
    """Return True if an attack or another part has a setting of this name."""
    return is_dataclass(part) and name in {item.name for item in fields(part)}


def length_of(attack: Attack) -> int | None:
    """Return how long an attack searches, such as its number of steps; None if it has no such setting."""
    length: int | None = getattr(attack, attack.length) if has_setting(attack, attack.length) else None
    return length


def with_settings(attack: Attack, **settings: Any) -> Attack:
    """Return the attack with those of the settings that it has."""
    own = {name: value for name, value in settings.items() if has_setting(attack, name)}
    changed: Attack = replace(attack, **own) if own else attack  # type: ignore[type-var]
    return changed
