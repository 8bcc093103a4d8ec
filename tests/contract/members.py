"""Members of the registries as the contract tests choose, build, vary and observe them."""

import typing
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.architectures import ImageShape
from robustcli.errors import RobustCliError
from robustcli.promises import architectures as architectures_promises
from robustcli.promises import attacks as attacks_promises
from robustcli.promises import averaging as averaging_promises
from robustcli.promises import defenses as defenses_promises
from robustcli.promises import diagnostics as diagnostics_promises
from robustcli.promises import evaluators as evaluators_promises
from robustcli.promises import mixers as mixers_promises
from robustcli.promises import optimizers as optimizers_promises
from robustcli.promises import regularisers as regularisers_promises
from robustcli.promises import schedules as schedules_promises
from robustcli.promises import weights as weights_promises
from robustcli.registry.catalog import FAMILIES, Member, catalog
from robustcli.registry.registry import instantiate
from robustcli.registry.signatures import REQUIRED, Parameter
from robustcli.registry.types import Family, Norm
from robustcli.specs.check import Checker, family_of
from robustcli.specs.spec import ExperimentSpec
from robustcli.specs.yamlfile import to_yaml

# Tried in this order: the first that a network takes is the one it is tested on.
SHAPES = (ImageShape(1, 8, 8, 10), ImageShape(3, 32, 32, 10), ImageShape(3, 64, 64, 10))

Settings = dict[str, Any]


def all_members() -> list[Member]:
    return [catalog(family)[name] for family in FAMILIES for name in names_of(family)]


def is_named_by_specs(member: Member) -> bool:
    """Diagnostics are for `robust diagnose` alone."""
    return member.family != "diagnostics"


def names_of(family: str) -> list[str]:
    """The members of a family, without those of optional packages that are not installed."""
    members = catalog(family).items()
    return [name for name, member in members if not member.requires or find_spec(member.requires) is not None]


def norms_known_to(attack: str) -> tuple[Norm, ...]:
    """The norms that a registered attack works in; it promises to refuse the others."""
    return catalog("attacks")[attack].norms


def can_build_from_defaults(member: Member) -> bool:
    return all(parameter.default is not REQUIRED for parameter in member.parameters.values())


def settings_to_try(member: Member) -> list[Settings]:
    """Defaults, where they suffice, and the member's own cheap settings."""
    return [*([{}] if can_build_from_defaults(member) else []), member.smoke]


def build(member: Member, settings: Settings, *positional: Any) -> Any:
    """The member built as a spec builds it: its settings are checked first."""
    checker = Checker()
    chosen = checker.chosen(Family(member.family), {"name": member.name, **settings}, ())
    assert not checker.problems, checker.problems
    return instantiate(chosen, *positional)


def smoke(family: str, name: str, **settings: Any) -> Any:
    member = catalog(family)[name]
    return build(member, {**member.smoke, **settings})


def body_builder(member: Member, settings: Settings) -> architectures_promises.Body:
    return lambda shape: typing.cast(nn.Module, build(member, settings, shape))


def suitable_shape(member: Member, settings: Settings) -> ImageShape:
    for shape in SHAPES:
        with suppress(RobustCliError):
            build(member, settings, shape)
            return shape
    raise AssertionError(f"{member.name} takes none of {SHAPES}")


def optimizer_maker(member: Member, settings: Settings) -> optimizers_promises.Make:
    return lambda groups, lr: build(member, settings, groups, lr)


def whole_spec(member: Member, settings: Settings) -> ExperimentSpec:
    """A sound spec that chooses the member in its place."""
    entry = {"name": member.name, **settings}
    spec: Settings = {
        "name": "contract",
        "data": {"name": "digits"},
        "architecture": {"name": "small_cnn"},
        "threat": {"norm": _norm_for(member), "eps": "8/255"},
        "defense": {"name": "natural"},
        "train": {"epochs": 200},
        "evaluate": {},
    }
    places: dict[str, Callable[[], None]] = {
        "architectures": lambda: spec.update(architecture=entry),
        "attacks": lambda: spec["evaluate"].update(one={"name": "attacked", "attack": entry}),
        "averaging": lambda: spec["defense"].update(averaging=entry),
        "datasets": lambda: spec.update(data=entry),
        "defenses": lambda: spec.update(defense=entry),
        "evaluators": lambda: spec["evaluate"].update(one=entry),
        "mixers": lambda: spec["data"].update(mixer=entry),
        "optimizers": lambda: spec["train"].update(optimizer=entry),
        "regularisers": lambda: spec["defense"].update(regulariser=entry),
        "schedules": lambda: spec["train"].update(schedule=entry),
        "weights": lambda: spec["defense"].update(weights=entry),
    }
    places[member.family]()
    if member.trains:
        spec["architecture"] = {"name": member.trains, **catalog("architectures")[member.trains].smoke}
    text = to_yaml(spec).replace("'8/255'", "8/255")
    return ExperimentSpec.parse(text, "the contract tests")


def _norm_for(member: Member) -> Norm:
    return "linf" if "linf" in member.norms else member.norms[0]


def chosen_in(spec: ExperimentSpec, family: str) -> Any:
    """The member that `whole_spec` put into a spec."""
    places: dict[str, Callable[[], Any]] = {
        "architectures": lambda: spec.architecture,
        "attacks": lambda: spec.evaluate["one"].parameters["attack"],
        "averaging": lambda: spec.defense.parameters["averaging"],
        "datasets": lambda: spec.data,
        "defenses": lambda: spec.defense,
        "evaluators": lambda: spec.evaluate["one"],
        "mixers": lambda: spec.data.options.mixer,
        "optimizers": lambda: spec.train.optimizer,
        "regularisers": lambda: spec.defense.parameters["regulariser"],
        "schedules": lambda: spec.train.schedule,
        "weights": lambda: spec.defense.parameters["weights"],
    }
    return places[family]()


def observe(member: Member, settings: Settings) -> Tensor:
    """What the member does with some settings, as one row of numbers that differ when it does something else."""
    if member.family == "architectures":
        body = body_builder(member, settings)
        return architectures_promises.observed_architecture(body, suitable_shape(member, member.smoke))
    if member.family == "optimizers":
        return optimizers_promises.observed_optimizer(optimizer_maker(member, settings))
    observers: dict[str, Callable[[Any], Tensor]] = {
        "attacks": lambda attack: attacks_promises.observed(attack, member.norms),
        "averaging": averaging_promises.observed,
        "defenses": defenses_promises.observed,
        "diagnostics": diagnostics_promises.observed,
        "evaluators": evaluators_promises.observed_evaluator,
        "mixers": mixers_promises.observed,
        "regularisers": regularisers_promises.observed,
        "schedules": schedules_promises.observed_schedule,
        "weights": weights_promises.observed,
    }
    return observers[member.family](build(member, settings))


def differ(one: Tensor, other: Tensor) -> bool:
    return one.shape != other.shape or not torch.equal(one, other)


def usual_settings(member: Member) -> list[Settings]:
    """Those that options are varied around: an attack of two steps may hide what some of them do."""
    if member.family == "attacks":
        return settings_to_try(member)[::-1]
    return settings_to_try(member)[:1] if member.family == "defenses" else [member.smoke]


def choices_of(parameter: Parameter) -> tuple[Any, ...]:
    """The values of a parameter that has only a few: those of a Literal, or true and false."""
    if typing.get_origin(parameter.annotation) is typing.Literal:
        return typing.get_args(parameter.annotation)
    return (False, True) if parameter.annotation is bool else ()


def parameters_with_choices() -> Iterator[tuple[Member, Parameter]]:
    for member in all_members():
        for parameter in member.parameters.values():
            if member.family != "datasets" and choices_of(parameter):
                yield member, parameter


def other_parameters() -> Iterator[tuple[Member, Parameter]]:
    for member in all_members():
        for parameter in member.parameters.values():
            is_text = parameter.annotation is str
            if member.family != "datasets" and not choices_of(parameter) and not is_text:
                yield member, parameter


def other_values(parameter: Parameter, now: Any) -> Iterator[Any]:
    """Values that a parameter with no list of choices may have instead of the one it has."""
    family = family_of(parameter.annotation)
    if family is not None:
        yield from ({"name": member.name, **member.smoke} for member in catalog(family.name).values())
    elif (
        typing.get_origin(parameter.annotation) is list and family_of(typing.get_args(parameter.annotation)[0]) is None
    ):
        yield [*now, *now]
    elif typing.get_origin(parameter.annotation) is list:
        yield [{"name": member.name} for member in catalog("evaluators").values() if can_build_from_defaults(member)][
            :1
        ]
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


def surroundings(member: Member, parameter: Parameter) -> Iterator[Settings]:
    """The usual settings, and those with another option chosen: some parameters matter with that alone."""
    for usual in usual_settings(member):
        yield usual
        for other in member.parameters.values():
            if other.name != parameter.name:
                for choice in choices_of(other):
                    yield {**usual, other.name: choice}
    # Thresholds that the usual settings reach after more images than a test has.
    yield member.smoke
