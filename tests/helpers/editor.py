"""The JSON Schema of specs, as an editor applies it."""

from fractions import Fraction
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from robustcli.registry.types import Ratio, exact_text
from robustcli.specs.schema import json_schema


def as_an_editor_sees(value: Any) -> Any:
    """An editor sees quotients as text."""
    if isinstance(value, dict):
        return {key: as_an_editor_sees(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_an_editor_sees(item) for item in value]
    if isinstance(value, Ratio):
        return str(value.fraction)
    if isinstance(value, Fraction):
        return exact_text(value) if "/" in exact_text(value) else float(value)
    return value


@cache
def _validator() -> Draft202012Validator:
    schema = json_schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def errors(value: Any) -> list[str]:
    """The errors that an editor would mark in a spec."""
    return [f"{error.json_path}: {error.message}" for error in _validator().iter_errors(as_an_editor_sees(value))]
