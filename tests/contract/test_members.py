"""Every member can be built, is described, survives YAML, and has no dead options."""

import importlib
import inspect
import typing
from dataclasses import fields, is_dataclass, replace
from itertools import chain, combinations
from typing import Any

import pytest
from members import (
    all_members,
    are_built_alike,
    choices_of,
    chosen_in,
    differ,
    is_named_by_specs,
    observe,
    other_parameters,
    other_values,
    parameters_with_choices,
    shape_for,
    surroundings,
    usual_settings,
)
from torch import device, nn

from robustcli.contracts import description
from robustcli.contracts.build import SHAPES, build, settings_to_try, whole_spec
from robustcli.errors import RobustCliError
from robustcli.registry.catalog import FAMILIES, Member, catalog, package_of
from robustcli.registry.published import published, table
from robustcli.registry.registry import instantiate
from robustcli.registry.signatures import REQUIRED, Parameter, without_doc
from robustcli.registry.types import PROTOCOLS, Family
from robustcli.specs.check import Checker, family_of
from robustcli.specs.spec import ExperimentSpec, overridden
from robustcli.specs.yamlfile import Document

MEMBERS = all_members()


def title(value: object) -> str | None:
    if isinstance(value, Member):
        return f"{value.family}.{value.name}"
    if isinstance(value, Parameter):
        return value.name
    return "-".join(map(str, value)) if isinstance(value, tuple) else None


of_every_member = pytest.mark.parametrize("member", MEMBERS, ids=title)


def imported(member: Member) -> Any:
    module = __import__(member.module, fromlist=[member.attribute])
    return getattr(module, member.attribute)


def test_every_family_has_members() -> None:
    assert all(catalog(family) for family in FAMILIES)


@of_every_member
def test_registry_holds_what_the_source_announces(member: Member) -> None:
    registry = getattr(importlib.import_module(package_of(member.family)), member.family.upper())
    held = registry.get(member.name)
    if member.fixed:
        assert held.keywords == member.fixed
        held = held.func
    assert held is imported(member)
    assert member.name in list(registry)


@of_every_member
def test_signature_read_from_the_source_is_the_imported_one(member: Member) -> None:
    target = imported(member)
    keywords = {
        name: parameter
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    hints = typing.get_type_hints(target, include_extras=True)
    assert set(member.fixed) <= set(keywords)
    others = member.fixed.keys() | member.replaceable.keys()
    assert list(member.parameters) == [name for name in keywords if name not in others]
    for name, read in member.parameters.items():
        default = keywords[name].default
        assert read.default is REQUIRED if default is inspect.Parameter.empty else read.default == default
        assert type(read.default) is type(default) or read.default is REQUIRED
        assert read.annotation == with_families(without_doc(hints[name])[0]), name


def with_families(annotation: Any) -> Any:
    """An annotation with protocols replaced by their families."""
    if getattr(annotation, "__name__", None) in PROTOCOLS and not isinstance(annotation, Family):
        return PROTOCOLS[annotation.__name__]
    if typing.get_origin(annotation) is list:
        return list[with_families(typing.get_args(annotation)[0])]  # type: ignore[misc]
    return annotation


@of_every_member
def test_only_keyword_parameters_are_settings(member: Member) -> None:
    """Positional arguments, such as shape or rate, come from the program and not from a spec."""
    given = {"architectures": 1, "datasets": int(member.reads_test), "optimizers": 2}.get(member.family, 0)
    positional = [
        parameter
        for parameter in inspect.signature(imported(member)).parameters.values()
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY
    ]
    assert len(positional) == given


@of_every_member
def test_replaceable_fields_are_those_of_what_is_returned(member: Member) -> None:
    target = imported(member)
    returned = target if inspect.isclass(target) else typing.get_type_hints(target)["return"]
    # A data set returns images, which are not part of a spec.
    has_fields = is_dataclass(returned) and member.family != "datasets"
    writable = {item.name for item in fields(returned) if is_writable(item.type)} if has_fields else set()
    assert set(member.replaceable) == writable - set(member.parameters)
    undescribed = [parameter.name for parameter in member.replaceable.values() if not parameter.doc]
    assert not undescribed


def is_writable(annotation: Any) -> bool:
    """Whether a spec can contain a value of this type: a member, or plain values."""
    if annotation in (bool, int, float, str) or getattr(annotation, "__name__", "") in PROTOCOLS:
        return True
    return typing.get_origin(annotation) in (typing.Literal, typing.Annotated, tuple)


@pytest.mark.parametrize("member", [member for member in MEMBERS if member.replaceable], ids=title)
@pytest.mark.slow
def test_replacing_a_field_replaces_it(member: Member) -> None:
    for name, parameter in member.replaceable.items():
        family = family_of(parameter.annotation)
        if family is None:
            for choice in choices_of(parameter):
                try:
                    built = build(member, {**member.smoke, name: choice})
                except RobustCliError as error:
                    if f"{name} '{choice}'" not in str(error):
                        raise
                    continue  # Another setting of this member excludes this choice.
                assert getattr(built, name) == choice
            continue
        for other in catalog(family.name).values():
            built = build(member, {**member.smoke, name: {"name": other.name, **other.smoke}})
            assert getattr(built, name) == build(other, other.smoke)


# Building a data set reads its files; see test_whole_contracts.py.
@pytest.mark.parametrize("member", [member for member in MEMBERS if member.family != "datasets"], ids=title)
@pytest.mark.slow
def test_builds_from_defaults_and_from_smoke(member: Member) -> None:
    for settings in settings_to_try(member):
        if member.family == "architectures":
            # Without weights: published sizes take hundreds of megabytes.
            with device("meta"):
                assert isinstance(build(member, settings, SHAPES[2]), nn.Module)
            shape_for(member, member.smoke)
        elif member.family == "optimizers":
            build(member, settings, [{"params": [nn.Parameter()]}], 0.1)
        else:
            built = build(member, settings)
            assert built == build(member, settings), "settings are equal when their fields are"
            # Settings are frozen.
            with pytest.raises(AttributeError):
                setattr(built, next((item.name for item in fields(built)), "anything"), None)


@pytest.mark.parametrize("member", [*filter(is_named_by_specs, MEMBERS)], ids=title)
@pytest.mark.slow
def test_survives_yaml(member: Member) -> None:
    for values in settings_to_try(member):
        spec = whole_spec(member, values)
        again = ExperimentSpec.parse(spec.to_yaml(), "printed")
        assert again == spec
        assert again.digest == spec.digest
        assert again.to_yaml() == spec.to_yaml()
        chosen = chosen_in(again, member.family)
        assert (chosen.family, chosen.name) == (member.family, member.name)
        assert set(member.parameters) <= set(chosen.parameters), "every default is written out"
        if member.family not in ("architectures", "datasets", "optimizers"):
            assert instantiate(chosen) == build(member, values)


@of_every_member
def test_is_documented(member: Member) -> None:
    description.has_reference_and_describes_every_parameter(member)


@pytest.mark.parametrize("member", [member for member in MEMBERS if member.family in description.ADVISED], ids=title)
def test_docstring_states_when_to_use_it(member: Member) -> None:
    description.says_when_to_use_it(member)


@pytest.mark.parametrize("name", sorted({line.architecture for line in table()}))
def test_published_accuracies_are_those_of_networks_that_a_spec_can_name(name: str) -> None:
    lines = [replace(found, autoattack=0, clean=None) for found in published(name)]
    assert len(set(lines)) == len(lines), "two accuracies of one network, trained in one way"
    for found in published(name):
        assert 0 < found.autoattack < (found.clean or 1) <= 1
        assert all((found.training, found.images, found.source, found.data, found.threat, found.counted_by))
        settings = overridden(Document("the table", {"name": name}, {}), found.settings.split()).value
        checker = Checker()
        checker.chosen(Family("architectures"), settings, ())
        assert checker.problems == []


@pytest.mark.parametrize(("member", "parameter", "choices"), [*parameters_with_choices()], ids=title)
@pytest.mark.slow
def test_every_choice_does_something_of_its_own(member: Member, parameter: Parameter, choices: tuple[Any, ...]) -> None:
    choices_differ(member, parameter, choices)


def choices_differ(member: Member, parameter: Parameter, choices: tuple[Any, ...]) -> None:
    """Any two choices give different results with some of the usual settings."""
    alike = list(combinations(choices, 2))
    for settings in usual_settings(member):
        results = {
            choice: observe(member, {**settings, parameter.name: choice}) for choice in {*chain.from_iterable(alike)}
        }
        alike = [(one, other) for one, other in alike if not differ(results[one], results[other])]
        if not alike:
            return
    pytest.fail(f"{parameter.name}: {alike[0][0]} does what {alike[0][1]} does")


@pytest.mark.parametrize(("member", "parameter"), [*other_parameters()], ids=title)
@pytest.mark.slow
def test_every_other_parameter_does_something(member: Member, parameter: Parameter) -> None:
    some_other_value_differs(member, parameter)


def some_other_value_differs(member: Member, parameter: Parameter) -> None:
    """Another value of a parameter changes the result or the network with some of the settings."""
    for settings in surroundings(member, parameter):
        now = settings.get(parameter.name, parameter.default)
        for value in other_values(parameter, now):
            other = {**settings, parameter.name: value}
            try:
                if not are_built_alike(member, settings, other):
                    return
                changed = observe(member, other)
            except (RobustCliError, AssertionError):
                continue  # The value is refused; try the next one.
            if differ(observe(member, settings), changed):
                return
    pytest.fail(f"{parameter.name} changes nothing")


def test_members_that_need_a_setting_have_a_smoke_that_gives_it() -> None:
    for member in MEMBERS:
        assert set(member.required) <= set(member.smoke), member.name
        assert set(member.smoke) <= set(member.parameters), member.name
