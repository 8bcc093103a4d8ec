"""Promise of members with a base class: they have all attributes that other code reads."""

import importlib
from typing import Any

from robustcli.promises.build import build
from robustcli.registry.catalog import Member, package_of

# Base classes with the attributes that other code reads, some with defaults.
_BASES = {
    "attacks": "Attack",
    "averaging": "Averaging",
    "defenses": "Defense",
    "diagnostics": "Diagnostic",
    "evaluators": "Evaluator",
    "mixers": "Mixer",
    "preprocessors": "Preprocessor",
    "regularisers": "Regulariser",
    "schedules": "Schedule",
    "weights": "WeightPerturbation",
}


def has_what_its_base_class_has(member: Member) -> None:
    """A member derives from the base class of its family, or has all its attributes and methods."""
    if member.family not in _BASES:
        return
    base = getattr(importlib.import_module(package_of(member.family)), _BASES[member.family])
    kind = type(build(member, member.smoke))
    lacking = sorted(name for name in _names(base) if not hasattr(kind, name) and name not in _fields(kind))
    assert not lacking, (
        f"{kind.__module__}.{kind.__qualname__} does not have {', '.join(lacking)}; "
        f"derive it from {base.__module__}.{base.__qualname__}"
    )


def _names(base: type) -> set[str]:
    own = {**vars(base), **base.__annotations__}
    return {name for name in own if not name.startswith("_") or name == "__call__"}


def _fields(kind: type) -> dict[str, Any]:
    """Annotated fields of a class and its base classes."""
    return {name: hint for parent in kind.__mro__ for name, hint in vars(parent).get("__annotations__", {}).items()}
