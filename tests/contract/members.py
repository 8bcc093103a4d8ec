"""Members of the registries as the contract tests choose, build, vary and observe them."""

import json
import typing
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from typing import Any

import observing
import pytest
import torch
from torch import Tensor

from robustcli.architectures import ImageShape
from robustcli.contracts import averaging as averaging_contract
from robustcli.contracts import defenses as defenses_contract
from robustcli.contracts import mixers as mixers_contract
from robustcli.contracts import preprocessors as preprocessors_contract
from robustcli.contracts import regularizers as regularizers_contract
from robustcli.contracts import schedules as schedules_contract
from robustcli.contracts import weights as weights_contract
from robustcli.contracts.build import (
    Settings,
    build,
    builder,
    settings_to_try,
    suitable_shape,
)
from robustcli.registry.catalog import FAMILIES, Member, catalog
from robustcli.registry.signatures import Parameter
from robustcli.registry.types import Norm
from robustcli.specs.check import family_of
from robustcli.specs.spec import ExperimentSpec

# Names given by `--member`, with or without family; if empty, all members are tested.
asked_for: set[str] = set()


def spellings(member: Member) -> set[str]:
    return {member.name, f"{member.family}.{member.name}"}


def is_or_names_one_asked_for(value: object) -> bool:
    if isinstance(value, Member):
        return bool(spellings(value) & asked_for)
    return isinstance(value, str) and value in {spelling.rpartition(".")[2] for spelling in asked_for}


def all_members() -> list[Member]:
    return [catalog(family)[name] for family in FAMILIES for name in names_of(family)]


def is_named_by_specs(member: Member) -> bool:
    """Diagnostics are only for `robust diagnose`."""
    return member.family != "diagnostics"


def names_of(family: str) -> list[str]:
    """The selected members of a family, without those whose optional packages are not installed."""
    return [
        name
        for name, member in catalog(family).items()
        if not asked_for or asked_for & spellings(member)
        if not member.requires or find_spec(member.requires) is not None
    ]


def norms_known_to(attack: str) -> tuple[Norm, ...]:
    """The norms that an attack supports; it must refuse the others."""
    return catalog("attacks")[attack].norms


def smoke(family: str, name: str, **settings: Any) -> Any:
    member = catalog(family)[name]
    return build(member, {**member.smoke, **settings})


def chosen_in(spec: ExperimentSpec, family: str) -> Any:
    """The member that `whole_spec` has put into a spec."""
    places: dict[str, Callable[[], Any]] = {
        "architectures": lambda: spec.architecture,
        "attacks": lambda: spec.evaluate["one"].parameters["attack"],
        "averaging": lambda: spec.defense.parameters["averaging"],
        "datasets": lambda: spec.data,
        "defenses": lambda: spec.defense,
        "evaluators": lambda: spec.evaluate["one"],
        "mixers": lambda: spec.data.options.mixer,
        "optimizers": lambda: spec.train.optimizer,
        "preprocessors": lambda: spec.architecture.options.preprocess,
        "regularizers": lambda: spec.defense.parameters["regularizer"],
        "schedules": lambda: spec.train.schedule,
        "weights": lambda: spec.defense.parameters["weights"],
    }
    return places[family]()


_observed: dict[str, Tensor] = {}


def observe(member: Member, settings: Settings) -> Tensor:
    """Numbers that describe what the member does with some settings.

    Results are cached, because every parameter is varied around the same settings.
    """
    key = f"{member.family} {member.name} {sorted(settings.items())}"
    if key not in _observed:
        _observed[key] = _observe(member, settings)
    return _observed[key]


def _observe(member: Member, settings: Settings) -> Tensor:
    if member.family == "architectures":
        body = builder(member, settings)
        return observing.of_architecture(body, shape_for(member, member.smoke))
    if member.family == "optimizers":
        return observing.of_optimizer(builder(member, settings))
    observers: dict[str, Callable[[Any], Tensor]] = {
        "attacks": lambda attack: observing.of_attack(attack, member.norms),
        "averaging": averaging_contract.observed,
        "defenses": defenses_contract.observed,
        "diagnostics": observing.of_diagnostic,
        "evaluators": observing.of_evaluator,
        "mixers": mixers_contract.observed,
        "preprocessors": preprocessors_contract.observed,
        "regularizers": regularizers_contract.observed,
        "schedules": schedules_contract.observed_schedule,
        "weights": weights_contract.observed,
    }
    return observers[member.family](build(member, settings))


def differ(one: Tensor, other: Tensor) -> bool:
    return one.shape != other.shape or not torch.equal(one, other)


def shape_for(member: Member, settings: Settings) -> ImageShape:
    """The first shape of images that an architecture accepts."""
    return _shape_for(member.name, json.dumps(settings, sort_keys=True))


@cache
def _shape_for(name: str, settings: str) -> ImageShape:
    return suitable_shape(catalog("architectures")[name], json.loads(settings))


@cache
def _structure(name: str, settings: str) -> str:
    member = catalog("architectures")[name]
    with torch.device("meta"):
        return repr(build(member, json.loads(settings), shape_for(member, member.smoke)))


def are_built_alike(member: Member, one: Settings, other: Settings) -> bool:
    """Return False where other settings of an architecture give a network of other layers, which needs no weights."""
    if member.family != "architectures":
        return True
    first, second = (_structure(member.name, json.dumps(settings, sort_keys=True)) for settings in (one, other))
    return first == second


def usual_settings(member: Member) -> list[Settings]:
    """Return the settings that options are varied around: the cheap ones, for what attacks also longer ones.

    An attack of two steps may hide what some options do. Its defaults come last: they may take thousands of passes.
    """
    if member.family == "defenses":
        return settings_to_try(member)[::-1]
    if member.family == "attacks":
        return [member.smoke, {**member.smoke, **dict(_longer(member))}, *settings_to_try(member)[:-1]]
    return [member.smoke]


def _longer(member: Member) -> Iterator[tuple[str, int]]:
    """Yield the counts of the cheap settings times ten, at most the defaults."""
    for name, value in member.smoke.items():
        default = member.parameters[name].default
        if isinstance(value, int) and isinstance(default, int):
            yield name, min(10 * value, default)


def choices_of(parameter: Parameter) -> tuple[Any, ...]:
    """The values of a parameter that has only a few: those of a Literal, or true and false."""
    if typing.get_origin(parameter.annotation) is typing.Literal:
        return typing.get_args(parameter.annotation)
    return (False, True) if parameter.annotation is bool else ()


def parameters_with_choices() -> Iterator[Any]:
    """Members, their parameters with choices, and the choices that must differ from each other.

    All choices of a type, such as activations, are tested on one member of a family. The others are tested
    with their default and one other choice, which differs between members; the remaining choices
    belong to the full run.
    """
    shown: Counter[Any] = Counter()
    for member in all_members():
        for parameter in member.parameters.values():
            choices = choices_of(parameter)
            if member.family == "datasets" or not choices:
                continue
            number = shown[member.family, parameter.annotation]
            shown[member.family, parameter.annotation] += 1
            if number == 0 or len(choices) == 2 or parameter.default not in choices:
                yield member, parameter, choices
            else:
                others = [choice for choice in choices if choice != parameter.default]
                yield member, parameter, (parameter.default, others[number % len(others)])
                yield pytest.param(member, parameter, choices, marks=pytest.mark.full)


def other_parameters() -> Iterator[tuple[Member, Parameter]]:
    for member in all_members():
        for parameter in member.parameters.values():
            is_text = parameter.annotation in (str, str | None)
            if member.family != "datasets" and not choices_of(parameter) and not is_text:
                yield member, parameter


def other_values(parameter: Parameter, now: Any) -> Iterator[Any]:
    """Other values to try for a parameter without a list of choices."""
    family = family_of(parameter.annotation)
    if family is not None:
        yield from ({"name": member.name, **member.smoke} for member in catalog(family.name).values())
    elif (
        typing.get_origin(parameter.annotation) is list and family_of(typing.get_args(parameter.annotation)[0]) is None
    ):
        yield [*now, *now]
    elif typing.get_origin(parameter.annotation) is list:
        yield [{"name": member.name} for member in catalog("evaluators").values() if not member.required][:1]
    elif isinstance(now, tuple | list) and all(isinstance(item, str) for item in now):
        yield list(now[:1])
    elif isinstance(now, tuple):
        yield [2 * item for item in now] if all(isinstance(item, int) for item in now) else [item / 2 for item in now]
    elif isinstance(now, int):
        yield from (2, now + 1, now + 6, 1)
    elif isinstance(now, float) and now:
        yield from (now / 2, 2 * now)
    else:
        yield from (0.5, 0.02, 2, 100)


# Settings in which some parameters have an effect, because they describe a file of weights.
_FILE_OF_WEIGHTS = {"source": "weights.pt", "architecture": "small_cnn width=16", "mean": (0.1,), "std": (1.0,)}


def surroundings(member: Member, parameter: Parameter) -> Iterator[Settings]:
    """The usual settings, and variants that some parameters need to have an effect."""
    for usual in usual_settings(member):
        yield usual
        if member.name == "transfer_attack":
            yield {**usual, **_FILE_OF_WEIGHTS}
        for other in member.parameters.values():
            if other.name != parameter.name:
                for choice in choices_of(other):
                    yield {**usual, other.name: choice}
