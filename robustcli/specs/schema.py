"""The JSON Schema of specs, for editors: completion, documentation and first checks while typing."""

from fractions import Fraction
from typing import Any, get_args, get_origin

from robustcli.registry.catalog import FAMILIES, Member, catalog
from robustcli.registry.signatures import REQUIRED, Parameter
from robustcli.registry.types import Family
from robustcli.specs.check import family_of, plain_model, settings_kind, settings_of, to_plain
from robustcli.specs.settings import EVALUATOR
from robustcli.specs.spec import ExperimentSpec

_QUOTIENT = {"type": "string", "pattern": r"^[-+]?[0-9.]+/[0-9.]+$", "description": "a quotient such as 8/255"}


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a spec, with every registered member."""
    definitions: dict[str, Any] = {}
    for family in FAMILIES:
        members = catalog(family)
        for member in members.values():
            definitions[f"{family}.{member.name}"] = _member(member)
        definitions[family] = {
            "anyOf": [{"enum": list(members)}, *({"$ref": f"#/$defs/{family}.{name}"} for name in members)]
        }
    keys = settings_of(ExperimentSpec)
    properties = {key: _parameter(parameter) for key, parameter in keys.items()}
    properties["evaluate"] = {"type": "object", "additionalProperties": _family(EVALUATOR)}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "robust experiment",
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "required": [key for key, parameter in keys.items() if parameter.default is REQUIRED],
        "$defs": definitions,
    }


def _member(member: Member) -> dict[str, Any]:
    parameters = {**member.parameters, **member.replaceable}
    properties = {"name": {"const": member.name}, **{name: _parameter(p) for name, p in parameters.items()}}
    # Options are checked where the member is named, so other keys are allowed here.
    return {
        "type": "object",
        "description": member.summary,
        "properties": properties,
        "required": ["name", *member.required],
    }


def _family(family: Family) -> dict[str, Any]:
    reference = {"$ref": f"#/$defs/{family.name}"}
    if family.options is None:
        return reference
    return {"allOf": [reference, {"properties": _settings(family.options)["properties"]}]}


def _settings(kind: type) -> dict[str, Any]:
    parameters = settings_of(kind)
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {name: _parameter(parameter) for name, parameter in parameters.items()},
        "required": [name for name, parameter in parameters.items() if parameter.default is REQUIRED],
    }


def _parameter(parameter: Parameter) -> dict[str, Any]:
    schema = _annotation(parameter)
    if parameter.doc:
        schema = {**schema, "description": parameter.doc}
    if parameter.default is not REQUIRED and parameter.default is not None:
        schema = {**schema, "default": to_plain(parameter.default)}
    return schema


def _annotation(parameter: Parameter) -> dict[str, Any]:
    annotation = parameter.annotation
    family = family_of(annotation)
    if family is not None:
        return _family(family)
    if get_origin(annotation) is list:
        return {"type": "array", "items": _annotation(Parameter(parameter.name, get_args(annotation)[0]))}
    kind, may_be_nothing = settings_kind(annotation)
    if kind is not None:
        return {"anyOf": [_settings(kind), {"type": "null"}]} if may_be_nothing else _settings(kind)
    if Fraction in (annotation, *get_args(annotation)):
        return {"anyOf": [{"type": "number", "minimum": 0}, _QUOTIENT]}
    schema: dict[str, Any] = plain_model(annotation).model_json_schema()["properties"]["value"]
    schema.pop("title", None)
    choices = schema.get("anyOf", [schema])
    if any(choice.get("type") == "number" for choice in choices):
        return {"anyOf": [*choices, _QUOTIENT]}
    return schema
