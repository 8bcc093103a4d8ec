"""Build members for their checks like a spec does, from cheap settings."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch

from robustcli.architectures import ImageShape
from robustcli.errors import RobustCliError
from robustcli.registry.catalog import Member, catalog
from robustcli.registry.registry import instantiate
from robustcli.registry.types import Family, Norm
from robustcli.specs.check import Checker
from robustcli.specs.spec import ExperimentSpec
from robustcli.specs.yamlfile import to_yaml

Settings = dict[str, Any]
# Tried in this order; a network is checked with the first shape that it accepts.
SHAPES = (ImageShape(1, 8, 8, 10), ImageShape(3, 32, 32, 10), ImageShape(3, 64, 64, 10))


def settings_to_try(member: Member) -> list[Settings]:
    """Return the defaults if they suffice, and the declared cheap settings."""
    return [*([] if member.required else [{}]), member.smoke]


def build(member: Member, settings: Settings, *positional: Any) -> Any:
    """Build a member like a spec does, after checking its settings."""
    checker = Checker()
    spec = checker.chosen(Family(member.family), {"name": member.name, **settings}, ())
    assert not checker.problems, checker.problems
    return instantiate(spec, *positional)


def builder(member: Member, settings: Settings) -> Callable[..., Any]:
    """Return a function that builds a member from its positional arguments, such as the shape of images."""
    return partial(build, member, settings)


def suitable_shape(member: Member, settings: Settings) -> ImageShape:
    """Return the first shape that an architecture accepts."""
    for shape in SHAPES:
        with suppress(RobustCliError), torch.device("meta"):
            build(member, settings, shape)
            return shape
    raise AssertionError(f"{member.name} accepts none of {SHAPES}")


def whole_spec(member: Member, settings: Settings) -> ExperimentSpec:
    """Return a valid spec that uses the member."""
    entry = {"name": member.name, **settings}
    spec: Settings = {
        "name": "contract",
        "data": {"name": "digits"},
        "architecture": {"name": "small_cnn"},
        "threat": {"norm": usual_norm(member), "eps": "8/255"},
        "defense": {"name": "natural"},
        "train": {"epochs": 200},
        "evaluate": {},
    }
    places: dict[str, Callable[[], None]] = {
        "architectures": lambda: spec.update(architecture=entry),
        "attacks": lambda: spec["evaluate"].update(one={"name": "attack", "attack": entry}),
        "averaging": lambda: spec["defense"].update(averaging=entry),
        "datasets": lambda: spec.update(data=entry),
        "defenses": lambda: spec.update(defense=entry),
        "evaluators": lambda: spec["evaluate"].update(one=entry),
        "mixers": lambda: spec["data"].update(mixer=entry),
        "preprocessors": lambda: spec["architecture"].update(preprocess=entry),
        "optimizers": lambda: spec["train"].update(optimizer=entry),
        "regularizers": lambda: spec["defense"].update(regularizer=entry),
        "schedules": lambda: spec["train"].update(schedule=entry),
        "weights": lambda: spec["defense"].update(weights=entry),
    }
    places[member.family]()
    if member.trains:
        spec["architecture"] = {"name": member.trains, **catalog("architectures")[member.trains].smoke}
    text = to_yaml(spec).replace("'8/255'", "8/255")
    return ExperimentSpec.parse(text, f"a spec with {member.name}")


def usual_norm(member: Member) -> Norm:
    """Return linf, or the first norm that the member supports."""
    return "linf" if "linf" in member.norms else member.norms[0]
