"""Check values against signatures; report every problem with its place and the nearest valid value.

pydantic checks plain values; this module walks the tree of nested members and formats the errors.
"""

import inspect
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from fractions import Fraction
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic_core import ErrorDetails

from robustcli.errors import SpecError, shortened, suggest
from robustcli.registry.catalog import catalog
from robustcli.registry.registry import MemberSpec
from robustcli.registry.signatures import REQUIRED, Parameter, argument_docs
from robustcli.registry.types import Family, Ratio
from robustcli.specs.places import Where

_STRICT = ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True)
_FAILED: Any = object()
_Settings = TypeVar("_Settings")


@dataclass
class Checker:
    """Collects problems while resolving plain values.

    Args:
        problems: (path, text) of everything found so far.
        homes: where keys belong, as dotted paths, for messages about keys that are written elsewhere.
    """

    problems: list[tuple[Where, str]] = field(default_factory=list)
    homes: Mapping[str, str] = field(default_factory=dict)

    def unknown(self, where: Where, known: Collection[str], text: str) -> None:
        """Add the problem of an unknown key, with the place where it belongs or the nearest known key."""
        part, dot, _ = self.homes.get(str(where[-1]), "").partition(".")
        if not part:
            advice = suggest(str(where[-1]), known)
        elif dot:
            advice = f"; write it under {part}, as {part}.{where[-1]}"
        else:
            advice = f"; write it at the top of the spec, as {part}"
        self.problems.append((where, text + advice))

    def parameters(self, known: Mapping[str, Parameter], value: Mapping[str, Any], where: Where, owner: str) -> Any:
        """Check a mapping against parameters, and return it with all defaults."""
        for key in value:
            if key not in known:
                self.unknown((*where, key), known, f"unknown parameter of {owner}")
        resolved = {}
        for name, parameter in known.items():
            if name in value:
                resolved[name] = self.value(parameter, value[name], (*where, name))
            elif parameter.default is REQUIRED:
                self.problems.append(((*where, name), f"missing; {owner} needs it{_doc(parameter)}"))
            else:
                resolved[name] = self.value(parameter, parameter.default, (*where, name))
        return resolved

    def value(self, parameter: Parameter, value: Any, where: Where) -> Any:
        """Check one value against its parameter."""
        family = family_of(parameter.annotation)
        if family is not None:
            return self.chosen(family, value, where)
        if typing.get_origin(parameter.annotation) is list:
            inner = Parameter(parameter.name, typing.get_args(parameter.annotation)[0])
            if not isinstance(value, Sequence) or isinstance(value, str):
                self.problems.append((where, f"{_show(value)} is not a list"))
                return _FAILED
            return [self.value(inner, item, (*where, i)) for i, item in enumerate(value)]
        kind, may_be_nothing = settings_kind(parameter.annotation)
        if kind is not None:
            return None if value is None and may_be_nothing else self.settings(kind, value, where)
        return self._plain(parameter, value, where)

    def settings(self, kind: type, value: Any, where: Where) -> Any:
        """Check a mapping against a settings dataclass and build it."""
        if isinstance(value, kind):
            return value
        if not isinstance(value, Mapping):
            self.problems.append((where, f"{_show(value)} is not a mapping of {', '.join(settings_of(kind))}"))
            return _FAILED
        before = len(self.problems)
        owner = next((part for part in reversed(where) if isinstance(part, str)), "the spec")
        resolved = self.parameters(settings_of(kind), value, where, owner)
        return kind(**resolved) if len(self.problems) == before else _FAILED

    def chosen(self, family: Family, value: Any, where: Where) -> Any:
        """Check the choice of a member, written as {name: ..., parameters} or as only its name."""
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
            found = "no name" if isinstance(value, Mapping) else _show(value)
            self.problems.append((where, f"{found}; write {{name: ...}} with one of {', '.join(catalog(family.name))}"))
            return _FAILED
        members = catalog(family.name)
        name = value["name"]
        if name not in members and family.name == "evaluators" and name in catalog("attacks"):
            text = f"'{name}' is an attack, not an evaluator; write {{name: attack, attack: {name}}}"
            self.problems.append(((*where, "name"), text))
            return _FAILED
        if name not in members:
            self.problems.append(((*where, "name"), f"unknown name '{name}' in {family.name}{suggest(name, members)}"))
            return _FAILED
        member = members[name]
        options_known = settings_of(family.options) if family.options else {}
        replaced = {key: p for key, p in member.replaceable.items() if key in value}
        known = {**member.parameters, **member.replaceable, **options_known}
        given = {key: item for key, item in value.items() if key != "name"}
        before = len(self.problems)
        for key in given:
            if key not in known:
                self.unknown((*where, key), known, f"unknown parameter of '{name}' in {family.name}")
        own = {**member.parameters, **replaced}
        resolved = self.parameters(own, {k: v for k, v in given.items() if k in own}, where, f"'{name}'")
        options = None
        if family.options:
            options = self.settings(family.options, {k: v for k, v in given.items() if k in options_known}, where)
        return MemberSpec(family.name, name, resolved, options) if len(self.problems) == before else _FAILED

    def _plain(self, parameter: Parameter, value: Any, where: Where) -> Any:
        accepts_fraction = Fraction in _parts(parameter.annotation)
        if accepts_fraction and isinstance(value, int | float) and not isinstance(value, bool):
            # From its text: 0.031 means 31/1000, not the nearest double.
            value = value.fraction if isinstance(value, Ratio) else Fraction(str(value))
        if isinstance(value, list):
            value = tuple(value)
        try:
            checked = plain_model(parameter.annotation).model_validate({"value": value})
        except ValidationError as error:
            for problem in _telling(error.errors()):
                inside = tuple(part for part in problem["loc"][1:] if isinstance(part, int) or _is_key(part, value))
                if problem["type"] == "missing":
                    inside = inside[:-1]  # A missing list item has no place.
                text = _word(dict(problem), parameter)
                if (item := ((*where, *inside), text)) not in self.problems:
                    self.problems.append(item)
            return _FAILED
        return getattr(checked, "value")  # noqa: B009  (the field exists only at run time)


def checked(check: Callable[[Checker], Any], source: str) -> Any:
    """Return the result of `check` on plain values.

    Raises:
        SpecError: with all problems; `source` names the origin of the values.
    """
    checker = Checker()
    value = check(checker)
    if checker.problems:
        raise SpecError(source, [f"{'.'.join(map(str, where))}: {text}" for where, text in checker.problems])
    return value


def checked_member(family: Family, value: Any, where: Where, source: str) -> MemberSpec:
    """Return the member that a value names, after checking its settings.

    Raises:
        SpecError: with all problems; `source` names the origin of the value.
    """
    chosen: MemberSpec = checked(lambda checker: checker.chosen(family, value, where), source)
    return chosen


def checked_settings(kind: type[_Settings], value: Any, where: Where, source: str) -> _Settings:
    """Return the settings dataclass that a mapping describes.

    Raises:
        SpecError: with all problems; `source` names the origin of the value.
    """
    settings: _Settings = checked(lambda checker: checker.settings(kind, value, where), source)
    return settings


def is_sound(value: Any) -> bool:
    """Return True if no value inside a part of a checked spec has failed."""
    if isinstance(value, Mapping):
        return all(is_sound(item) for item in value.values())
    return value is not _FAILED


# Cached: specs have hundreds of values but few types, and creating a model is slower than checking a value.
@cache
def plain_model(annotation: Any) -> type[BaseModel]:
    """Return a strict pydantic model with one field, to check a plain value."""
    return create_model("Plain", __config__=_STRICT, value=(annotation, ...))


def family_of(annotation: Any) -> Family | None:
    """Return the registry of an annotation, if any."""
    if isinstance(annotation, Family):
        return annotation
    found = [part for part in getattr(annotation, "__metadata__", ()) if isinstance(part, Family)]
    return found[0] if found else None


def settings_kind(annotation: Any) -> tuple[type | None, bool]:
    """Return the settings dataclass of an annotation, if any, and whether None is allowed."""
    kinds = [part for part in (annotation, *typing.get_args(annotation)) if isinstance(part, type)]
    found = next((kind for kind in kinds if is_dataclass(kind)), None)
    return found, type(None) in kinds


def settings_of(kind: type) -> dict[str, Parameter]:
    """The fields of a settings dataclass as parameters."""
    hints = typing.get_type_hints(kind, include_extras=True)
    docs = argument_docs(inspect.getdoc(kind) or "")
    parameters = {}
    for item in fields(kind):
        default = REQUIRED if item.default is MISSING else item.default
        if item.default_factory is not MISSING:
            default = item.default_factory()
        parameters[item.name] = Parameter(item.name, hints[item.name], default, docs.get(item.name, ""))
    return parameters


def choices_of(annotation: Any) -> list[Any]:
    """Return the values of all Literals in an annotation."""
    literals = (part for part in _parts(annotation) if typing.get_origin(part) is typing.Literal)
    return [choice for literal in literals for choice in typing.get_args(literal)]


def to_plain(value: Any) -> Any:
    """Convert resolved values to dictionaries, lists, numbers and text, as written in specs."""
    if isinstance(value, MemberSpec):
        options = to_plain(value.options) if value.options is not None else {}
        return {"name": value.name, **to_plain(value.parameters), **options}
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    return value


def with_leaves(value: Any, change: Callable[[Any], Any]) -> Any:
    """Plain data in which every value inside mappings and lists is replaced."""
    if isinstance(value, Mapping):
        return {key: with_leaves(item, change) for key, item in value.items()}
    return [with_leaves(item, change) for item in value] if isinstance(value, list) else change(value)


def _parts(annotation: Any) -> list[Any]:
    """Return an annotation and all its parts."""
    return [annotation, *(part for item in typing.get_args(annotation) for part in _parts(item))]


def _is_key(part: Any, value: Any) -> bool:
    return isinstance(value, Mapping) and part in value


def _show(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    return f"'{shortened(value)}'" if isinstance(value, str) else shortened(str(value))


def _doc(parameter: Parameter) -> str:
    return f" ({parameter.doc.removesuffix('.')})" if parameter.doc else ""


def _telling(problems: list[ErrorDetails]) -> list[ErrorDetails]:
    """If a number or a list of numbers is allowed, return the problems of the form that was written."""
    other_form = ("tuple_type", "float_type")
    found = [item for item in problems if item["type"] not in other_form or isinstance(item["loc"][-1], int)]
    return found or problems


def _word(problem: dict[str, Any], parameter: Parameter) -> str:
    """Reword an error of pydantic for the author of a spec."""
    kind, found = problem["type"], _show(problem["input"])
    if kind in ("int_type", "int_from_float", "int_parsing"):
        return f"{found} is not a whole number"
    if kind in ("float_type", "float_parsing"):
        return f"{found} is not a number"
    if kind == "bool_type":
        return f"{found} is not true or false"
    if kind in ("dict_type", "mapping_type"):
        return f"{found} is not a mapping of names to values"
    if kind == "string_type":
        return f"{found} is not text; put quotes around it"
    if kind == "literal_error":
        choices = map(str, choices_of(parameter.annotation))
        return f"{found} is not one of the choices{suggest(str(problem['input']), choices)}"
    if kind == "is_instance_of" and Fraction in _parts(parameter.annotation):
        return f"{found} is not a number or a quotient such as 8/255"
    if kind in ("tuple_type", "too_long", "missing"):
        found = shortened(str(list(problem["input"]))) if isinstance(problem["input"], tuple) else found
        return f"{found} is not a list of {_length(parameter.annotation)}{_example(parameter)}"
    if kind == "string_pattern_mismatch":
        return f"{found} may contain only letters, digits, _ . and -, and must begin with a letter or digit"
    bounds = {"greater_than": ">", "greater_than_equal": ">=", "less_than": "<", "less_than_equal": "<="}
    if kind in bounds:
        limit = next(iter(problem["ctx"].values()))
        return f"{found} is outside the range: must be {bounds[kind]} {limit}"
    return f"{found}: {problem['msg']}"


def _length(annotation: Any) -> str:
    """Return the number of values of a tuple as text."""
    kind = next(part for part in _parts(annotation) if typing.get_origin(part) is tuple)
    arguments = typing.get_args(kind)
    return "values" if Ellipsis in arguments or not arguments else f"{len(arguments)} values"


def _example(parameter: Parameter) -> str:
    default = parameter.default
    return f", such as {list(default)}" if isinstance(default, tuple) and default else ""
