"""The JSON Schema: editors and `robust validate` agree; test_experiments.py asks it about the shipped specs."""

from typing import Any

import pytest
from editor import errors

from robustcli.registry.catalog import FAMILIES, catalog
from robustcli.specs.schema import json_schema


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return json_schema()


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
    "evaluate": {"pgd": {"name": "attack", "attack": {"name": "pgd", "steps": 3}, "examples": 5}},
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
        ("evaluate", {"pgd": {"name": "attack"}}),
        ("evaluate", {"pgd": {"name": "attack", "attack": {"name": "pgd", "steps": "x"}}}),
    ],
)
def test_what_is_wrong_is_refused(key: str, value: Any) -> None:
    assert errors(GOOD) == []
    assert errors({**GOOD, key: value}) != []
