"""Turn the name of an attack or of an evaluator into a checked evaluator."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from robustcli.errors import RobustCliError, suggest
from robustcli.registry.catalog import catalog
from robustcli.registry.registry import MemberSpec
from robustcli.specs.check import checked_member, choices_of
from robustcli.specs.renamed import understood
from robustcli.specs.settings import EVALUATOR

# Settings of `transfer_attack` that describe the network on which examples are made.
_OF_SOURCE = ("source", "architecture", "mean", "std")


def evaluator_of(
    name: str, options: Mapping[str, Any], *, option: str = "--", source: str = "robust eval"
) -> MemberSpec:
    """Return the evaluator for a name and settings.

    An attack becomes the evaluator `attack`, or `transfer_attack` if `source` is among its settings. A part of
    an evaluator, such as apgd-t of AutoAttack, becomes that evaluator with this part only.

    Args:
        name: an evaluator, an attack, or a part of an evaluator.
        options: settings, as plain values.
        option: prefix of settings in messages: "--" on the command line.
        source: origin of the values, for messages.

    Raises:
        RobustCliError: there is no such evaluator or attack, or a setting is wrong.
    """
    if name in ("transfer", "transfer_attack") and "attack" not in options:
        raise RobustCliError(
            f"{option}attack {name}: name the attack and the model to craft on: {option}attack pgd {option}source MODEL"
        )
    wish = understood({"name": name, **options}, source)
    if wish["name"] in catalog("evaluators"):
        return checked_member(EVALUATOR, wish, ("attack",), source)
    if name not in catalog("attacks") and (whole := _evaluator_with_part(name)) is not None:
        return checked_member(EVALUATOR, {**whole, **options}, ("attack",), source)
    attack = attack_settings(name, options, option=option)
    network = {key: attack.pop(key) for key in _OF_SOURCE if key in attack} if "source" in attack else {}
    wish = {"name": "transfer_attack" if network else "attack", **network}
    return checked_member(EVALUATOR, {**wish, "attack": attack}, ("attack",), source)


def _evaluator_with_part(name: str) -> dict[str, Any] | None:
    """Return the evaluator with only its part of this name, in the form of a spec; None if no evaluator has one."""
    for evaluator, member in catalog("evaluators").items():
        if member.parts and name in choices_of(member.parameters[member.parts].annotation):
            return {"name": evaluator, member.parts: [name]}
    return None


def attack_settings(name: str, options: Mapping[str, Any], *, option: str = "--") -> dict[str, Any]:
    """Return an attack for an evaluation in the form of a spec: any point that fools the network counts.

    Raises:
        RobustCliError: there is no such attack, or it attacks nothing.
    """
    if name not in catalog("attacks"):
        known = [*catalog("evaluators"), *catalog("attacks")]
        # pgd-20 and, as results call it, pgd-20-1: its steps and restarts.
        counted = re.fullmatch(r"(\w*?[a-z])-?([1-9][0-9]*)(-[0-9]+)?", name.lower())
        if counted and "steps" in getattr(catalog("attacks").get(counted[1]), "parameters", {}):
            raise RobustCliError(f"{option}attack {name}: write {option}attack {counted[1]} {option}steps {counted[2]}")
        raise RobustCliError(f"{option}attack: there is no evaluator or attack '{name}'{suggest(name, known)}")
    has_no_pass = catalog("attacks")[name].passes == (0, 0, 0)
    if has_no_pass or options.get("steps") == 0:
        asked = f"{option}attack {name}" if has_no_pass else f"{option}steps 0"
        raise RobustCliError(f"{asked}: attacks nothing; for clean accuracy write {option}attack clean")
    attack = {"name": name, **options}
    if "source" not in options and "keep" in catalog("attacks")[name].parameters:
        # In an evaluation any point that fools the model counts, not only the last one.
        attack.setdefault("keep", "fooled")
    size = attack.get("step_size")
    if isinstance(size, float | int) and size > 1:
        raise RobustCliError(f"step_size: {size:g} is larger than the pixel range [0, 1]; write {size:g}/255")
    return attack


def with_batch_size(choice: MemberSpec, batch_size: int) -> MemberSpec:
    """Return the same evaluator, and the members of a worst case, with another batch size."""
    parameters = {
        key: [with_batch_size(member, batch_size) for member in value]
        if isinstance(value, list) and all(isinstance(member, MemberSpec) for member in value)
        else value
        for key, value in choice.parameters.items()
    }
    if "batch_size" in parameters:
        parameters["batch_size"] = batch_size
    return replace(choice, parameters=parameters)
