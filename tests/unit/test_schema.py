"""The JSON Schema: a small validator of its own reads it, so that editors and `robust validate` agree."""

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest

from robustcli.registry.catalog import FAMILIES, catalog
from robustcli.registry.types import Ratio, exact_text
from robustcli.specs import experiments
from robustcli.specs.schema import json_schema
from robustcli.specs.spec import ExperimentSpec
from robustcli.specs.yamlfile import read_yaml


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return json_schema()


TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "null": lambda value: value is None,
}
# What says nothing about validity.
NOTES = {"$schema", "$defs", "title", "description", "default", "format"}


def errors(value: Any, schema: dict[str, Any], root: dict[str, Any], where: str = "") -> list[str]:
    """What is wrong with a value; a keyword that this does not know fails the test that met it."""
    found = []
    for keyword, rule in schema.items():
        match keyword:
            case "$ref":
                found += errors(value, root["$defs"][rule.removeprefix("#/$defs/")], root, where)
            case "anyOf":
                tried = [errors(value, option, root, where) for option in rule]
                found += (
                    [] if any(not each for each in tried) else [f"{where}: none of {len(rule)}: {min(tried, key=len)}"]
                )
            case "allOf":
                found += [error for option in rule for error in errors(value, option, root, where)]
            case "enum":
                found += [] if value in rule else [f"{where}: {value} not in {rule}"]
            case "const":
                found += [] if value == rule else [f"{where}: {value} is not {rule}"]
            case "type":
                found += [] if TYPES[rule](value) else [f"{where}: {value} is no {rule}"]
            case "pattern":
                is_wrong = isinstance(value, str) and not re.search(rule, value)
                found += [f"{where}: {value} does not match {rule}"] if is_wrong else []
            case "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum":
                if TYPES["number"](value):
                    is_right = {
                        "minimum": value >= rule,
                        "maximum": value <= rule,
                        "exclusiveMinimum": value > rule,
                        "exclusiveMaximum": value < rule,
                    }[keyword]
                    found += [] if is_right else [f"{where}: {value} breaks {keyword} {rule}"]
            case "properties":
                if isinstance(value, dict):
                    for key, inner in rule.items():
                        if key in value:
                            found += errors(value[key], inner, root, f"{where}.{key}")
            case "required":
                if isinstance(value, dict):
                    found += [f"{where}: lacks {key}" for key in rule if key not in value]
            case "additionalProperties":
                if isinstance(value, dict):
                    others = {k: v for k, v in value.items() if k not in schema.get("properties", {})}
                    if rule is False:
                        found += [f"{where}: unknown {key}" for key in others]
                    elif isinstance(rule, dict):
                        for key, inner in others.items():
                            found += errors(inner, rule, root, f"{where}.{key}")
            case "items":
                if isinstance(value, list):
                    for i, item in enumerate(value):
                        found += errors(item, rule, root, f"{where}.{i}")
            case "prefixItems":
                if isinstance(value, list):
                    for i, (item, inner) in enumerate(zip(value, rule, strict=False)):
                        found += errors(item, inner, root, f"{where}.{i}")
            case "minItems" | "maxItems":
                if isinstance(value, list):
                    is_wrong = len(value) < rule if keyword == "minItems" else len(value) > rule
                    found += [f"{where}: {len(value)} items break {keyword} {rule}"] if is_wrong else []
            case _:
                assert keyword in NOTES, f"this test does not know the keyword {keyword}"
    return found


def as_an_editor_sees(value: Any) -> Any:
    """Quotients are text to an editor."""
    if isinstance(value, dict):
        return {key: as_an_editor_sees(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_an_editor_sees(item) for item in value]
    if isinstance(value, Ratio):
        return str(value.fraction)
    if isinstance(value, Fraction):
        return exact_text(value) if "/" in exact_text(value) else float(value)
    return value


@pytest.mark.parametrize("name", experiments.names())
def test_every_shipped_spec_is_valid_as_written_and_as_resolved(schema: dict[str, Any], name: str) -> None:
    path = experiments.find(name)
    assert errors(as_an_editor_sees(read_yaml(path).value), schema, schema) == []
    plain = ExperimentSpec.read(path).to_plain()
    assert errors(as_an_editor_sees(plain), schema, schema) == []


def test_every_member_and_every_parameter_is_in_it(schema: dict[str, Any]) -> None:
    for family in FAMILIES:
        assert schema["$defs"][family]["anyOf"][0]["enum"] == list(catalog(family))
        for name, member in catalog(family).items():
            entry = schema["$defs"][f"{family}.{name}"]
            assert entry["description"] == member.summary
            assert set(entry["properties"]) == {"name", *member.parameters, *member.replaceable}
            for key, parameter in {**member.parameters, **member.replaceable}.items():
                assert entry["properties"][key].get("description", "") == parameter.doc


def test_every_key_of_a_spec_is_described(schema: dict[str, Any]) -> None:
    assert set(schema["properties"]) == {
        "name", "seed", "data", "architecture", "threat", "defense", "train", "evaluate", "claim"
    }  # fmt: skip
    assert schema["required"] == ["name", "data", "architecture", "threat", "defense", "train"]
    for key in ("threat", "train", "claim"):
        described = schema["properties"][key]
        # What may be left empty is one of two things.
        for name, entry in described.get("anyOf", [described])[0]["properties"].items():
            assert entry.get("description"), f"{key}.{name}"


def test_no_parameter_is_private(schema: dict[str, Any]) -> None:
    private = [
        f"{family}.{name}.{key}"
        for family in FAMILIES
        for name, member in catalog(family).items()
        for key in {**member.parameters, **member.replaceable}
        if key.startswith("_")
    ]
    assert private == []


GOOD: dict[str, Any] = {
    "name": "s",
    "data": "digits",
    "architecture": {"name": "small_cnn", "width": 4},
    "threat": {"eps": "8/255"},
    "defense": {"name": "trades", "weights": {"name": "awp", "gamma": 0.01}},
    "train": {"epochs": 1, "lr": "1/10"},
    "evaluate": {"pgd": {"name": "attacked", "attack": {"name": "pgd", "steps": 3}, "examples": 5}},
}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", None),
        ("sead", 3),
        ("seed", "three"),
        ("data", "digitss"),
        ("data", {"name": "digits", "val_size": -1}),
        ("architecture", {"name": "small_cnn", "width": 0}),
        ("architecture", {"name": "resnet18", "strides": [1, 2, 2]}),
        ("architecture", {"name": "wide_resnet", "strides": [1, 2, 2, 2]}),
        ("architecture", {"name": "vgg16", "strides": [1, 2, 2, 2, 0]}),
        ("threat", {"eps": "big"}),
        ("threat", {"norm": "linf"}),
        ("threat", {"eps": 1, "norm": "l3"}),
        ("defense", {"name": "trades", "weights": "awpp"}),
        ("train", {"epochs": 1, "epoch": 2}),
        ("train", {"epochs": 1, "lr": "fast"}),
        ("train", {"epochs": 1, "select": "best"}),
        ("evaluate", {"pgd": {"name": "attacked"}}),
        ("evaluate", {"pgd": {"name": "attacked", "attack": {"name": "pgd", "steps": "x"}}}),
    ],
)
def test_what_is_wrong_is_refused(schema: dict[str, Any], key: str, value: Any) -> None:
    assert errors(GOOD, schema, schema) == []
    assert errors({**GOOD, key: value}, schema, schema) != []
