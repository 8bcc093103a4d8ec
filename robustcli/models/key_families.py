"""Recognize architectures by the names and shapes of their weights."""

import importlib
from collections.abc import Mapping

from torch import Tensor

from robustcli.registry.catalog import catalog


def recognize(tensors: Mapping[str, Tensor]) -> str | None:
    """Options of `robust eval` that name the likely architecture of weights, or None.

    Members declare which weights of other programs they recognize. It is a suggestion for messages, never a decision.

    Args:
        tensors: weights by name, without prefixes such as "module.".
    """
    for name, member in catalog("architectures").items():
        if not member.suggested_by:
            continue
        settings = getattr(importlib.import_module(member.module), member.suggested_by)(tensors)
        # One function may serve several members, with one setting fixed by their names.
        if settings is not None and all(settings.get(key) == value for key, value in member.fixed.items()):
            return _options(name, {key: value for key, value in settings.items() if key not in member.fixed})
    return None


def _options(name: str, settings: Mapping[str, object]) -> str:
    return " ".join(
        (f"--architecture {name}", *(f"architecture.{key}={_text(value)}" for key, value in settings.items()))
    )


def _text(value: object) -> str:
    """A value as a command line takes it: lists without blanks."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(str, value))}]"
    return str(value)
