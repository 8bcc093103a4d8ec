"""YAML of specs: numbers, text, line numbers, and writing."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcli.errors import RobustCliError, SpecError
from robustcli.registry.types import Ratio
from robustcli.specs.spec import ExperimentSpec, overridden
from robustcli.specs.yamlfile import parse_scalar, parse_yaml, read_yaml, to_yaml


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1e-4", 1e-4),
        ("5E-4", 5e-4),
        ("1e3", 1000.0),
        ("+2.5e+3", 2500.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-0.031", -0.031),
        ("12", 12),
        ("-3", -3),
        ("+7", 7),
        ("007", 7),
    ],
)
def test_numbers_are_numbers(text: str, number: float) -> None:
    value = parse_scalar(text)
    assert value == number
    assert type(value) is type(number)


@pytest.mark.parametrize(
    ("text", "exact"),
    [
        ("8/255", Fraction(8, 255)),
        ("16/255", Fraction(16, 255)),
        ("-2/255", Fraction(-2, 255)),
        ("0.5/255", Fraction(1, 510)),
        ("1/0.25", Fraction(4)),
    ],
)
def test_quotients_are_floats_that_know_their_exact_value(text: str, exact: Fraction) -> None:
    value = parse_scalar(text)
    assert isinstance(value, Ratio)
    assert value.fraction == exact
    assert value == exact.numerator / exact.denominator


@pytest.mark.parametrize(
    "text",
    [
        "no",
        "yes",
        "on",
        "off",
        "y",
        "True",
        "No",
        "1:30",
        "0x10",
        "1_000",
        "2024-01-01",
        ".inf",
        "nan",
        "1/0",
        "8/",
        "e5",
    ],
)
def test_what_yaml_would_turn_into_something_else_stays_text(text: str) -> None:
    assert parse_yaml(f"a: {text}", "s").value == {"a": text}


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False), ("null", None), ("~", None), ("", None)])
def test_words(text: str, value: object) -> None:
    assert parse_yaml(f"a: {text}", "s").value == {"a": value}


@pytest.mark.parametrize("text", ["8", "8/255", "true", "null", "1e-4", ""])
@pytest.mark.parametrize("quote", ["'", '"'])
def test_what_is_quoted_is_text(text: str, quote: str) -> None:
    assert parse_scalar(f"{quote}{text}{quote}") == text


def test_keys_are_text_as_written() -> None:
    assert parse_yaml("{1: a, no: b, 8/255: c}", "s").value == {"1": "a", "no": "b", "8/255": "c"}


def test_every_value_has_its_line() -> None:
    document = parse_yaml("a: 1\n\n# comment\nb:\n  c: [2,\n    {d: 3}]\n", "s")
    assert document.value == {"a": 1, "b": {"c": [2, {"d": 3}]}}
    places = {".".join(map(str, path)): place for path, place in document.places.items()}
    assert places == {
        "": "line 1",
        "a": "line 1",
        "b": "line 4",
        "b.c": "line 5",
        "b.c.0": "line 5",
        "b.c.1": "line 6",
        "b.c.1.d": "line 6",
    }


def test_keys_written_twice_are_refused_all_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        parse_yaml("a: 1\nb: {c: 1, c: 2}\nd:\n  - {e: 1}\n  - e: 1\n    e: 2\na: 3\n", "my.yaml")
    assert str(caught.value).startswith("my.yaml: 3 problems\n")
    assert sorted(caught.value.problems) == [
        "line 2: b.c: written twice",
        "line 6: d.1.e: written twice",
        "line 7: a: written twice",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: {b: 1", 1),
        ("a: 1\nb: [1,\n", 3),
        ("a:\n\t- 1", 2),
        ("a: 1\n---\nb: 2", 2),
        ("a: 1\n b: 2", 2),
        ("a: *x", 1),
    ],
)
def test_what_is_not_yaml_names_its_line(text: str, line: int) -> None:
    with pytest.raises(SpecError, match=rf"line {line}: not YAML: \S"):
        parse_yaml(text, "my.yaml")


def test_control_characters_are_refused() -> None:
    with pytest.raises(SpecError, match="not YAML"):
        parse_yaml("a: \x07", "my.yaml")


def test_an_anchor_may_be_used_twice() -> None:
    assert parse_yaml("a: &x {b: 1}\nc: *x\n", "s").value == {"a": {"b": 1}, "c": {"b": 1}}


def test_merged_keys_are_replaced_by_written_ones_and_by_earlier_merges() -> None:
    anchors = "a: &a {x: 1, y: {z: 2}}\nb: &b {x: 3, w: 4}\n"
    value = parse_yaml(anchors + "c: {y: 5, <<: *a}\nd: {<<: [*b, *a], v: 6}\ne: {<<: {<<: *a, x: 0}}\n", "file").value
    assert value["c"] == {"x": 1, "y": 5}
    assert value["d"] == {"x": 3, "w": 4, "y": {"z": 2}, "v": 6}
    assert value["e"] == {"x": 0, "y": {"z": 2}}


def test_a_merged_key_is_found_where_it_is_written() -> None:
    places = parse_yaml("a: &a\n  x: 1\nb:\n  <<: *a\n  y: 2\n", "file").places
    assert (places["b", "x"], places["b", "y"], places["b",]) == ("line 2", "line 5", "line 3")


@pytest.mark.parametrize("value", ["1", "[1]", "text"])
def test_only_mappings_are_merged(value: str) -> None:
    with pytest.raises(SpecError, match="line 1: <<: expected a mapping"):
        parse_yaml(f"a: {{<<: {value}}}", "file")


def test_a_quoted_merge_sign_is_a_key() -> None:
    assert parse_yaml("'<<': 1", "file").value == {"<<": 1}


def test_a_mapping_merged_into_itself_is_refused() -> None:
    with pytest.raises(SpecError, match="an anchor inside itself"):
        parse_yaml("a: &a {x: {<<: *a}}", "file")


def test_an_anchor_inside_itself_is_refused() -> None:
    with pytest.raises(SpecError, match="line 2"):
        parse_yaml("a: 1\nb: &x [*x]\n", "s")


@pytest.mark.parametrize("text", ["1e999", "-1e400", "9" * 5000])
def test_a_number_that_no_float_holds_stays_text(text: str) -> None:
    assert parse_scalar(text) == text


def test_no_tag_runs_code() -> None:
    assert parse_yaml("a: !!python/object/apply:os.getcwd []", "s").value == {"a": []}


def test_an_empty_file_holds_nothing() -> None:
    assert parse_yaml("# nothing but this\n", "s").value is None


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RobustCliError, match=r"gone\.yaml: no such file"):
        read_yaml(tmp_path / "gone.yaml")


def test_bytes_that_are_not_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(RobustCliError, match="cannot be read as text"):
        read_yaml(tmp_path / "latin.yaml")


def test_tabs_are_named(tmp_path: Path) -> None:
    (tmp_path / "tabs.yaml").write_text("data:\n\tname: digits\n")
    with pytest.raises(RobustCliError, match=r"line 2: not YAML: .*; indent with spaces instead of tabs"):
        read_yaml(tmp_path / "tabs.yaml")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RobustCliError, match="cannot be read as text"):
        read_yaml(tmp_path)


TEXT = st.text() | st.sampled_from(
    [
        "",
        "no",
        "null",
        "~",
        "true",
        "5",
        "5\n",
        "1e-5",
        "8/255",
        "1:30",
        " x",
        "#a",
        "- a",
        "a: b",
        "\x85",
        "a\nb",
        "<<",
    ]
)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUES: st.SearchStrategy[Any] = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8
)


@settings(max_examples=300)
@given(VALUES)
def test_what_is_written_is_read_back(value: Any) -> None:
    read = parse_yaml(to_yaml(value), "s").value
    assert read == value
    assert repr(read) == repr(value)  # 1 equals 1.0 and True, and must not become either


@pytest.mark.parametrize("number", [1e-05, 4e-06, 1.5e-7, 1e16, 1e300, -1e-9, 5e-324])
def test_numbers_that_python_writes_with_an_exponent_are_read_back_as_numbers(number: float) -> None:
    assert parse_yaml(to_yaml({"a": number}), "s").value == {"a": number}


@settings(max_examples=200)
@given(st.fractions())
def test_fractions_are_read_back_exactly(number: Fraction) -> None:
    value = parse_yaml(to_yaml({"a": number}), "s").value["a"]
    assert (value.fraction if isinstance(value, Ratio) else Fraction(str(value))) == number


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (Fraction(8, 255), "8/255"),
        (Fraction(1, 2), "0.5"),
        (Fraction(31, 1000), "0.031"),
        (Fraction(3), "3"),
        (Fraction(0), "0"),
    ],
)
def test_fractions_are_written_as_people_write_them(number: Fraction, text: str) -> None:
    assert to_yaml({"eps": number}) == f"eps: {text}\n"


@pytest.mark.parametrize(
    "text", ["9" * 4000, "9" * 20_000, "8/" + "9" * 5000, "9" * 20_000 + "/255", "0." + "9" * 5000]
)
def test_a_number_of_thousands_of_digits_is_text(text: str) -> None:
    assert parse_scalar(text) == text
    with pytest.raises(SpecError) as caught:
        ExperimentSpec.parse(f"name: x\nthreat: {{eps: {text}}}\n", "the test")
    assert len(str(caught.value)) < 2000


def test_anchors_that_repeat_each_other_are_refused_before_they_fill_the_memory() -> None:
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 20))]
    with pytest.raises(SpecError, match="more than 100,000 values"):
        parse_yaml("\n".join(lines), "the test")


def test_keys_that_are_no_text_are_refused() -> None:
    with pytest.raises(SpecError, match="line 1: a key that is a list or a mapping"):
        parse_yaml("? [a, b]\n: 2\n", "the test")


def test_an_override_of_thousands_of_levels_is_refused() -> None:
    with pytest.raises(RobustCliError, match="nested too deeply"):
        overridden(parse_yaml("name: x", "the test"), ["a." * 3000 + "b=1"])
