"""Registries: members register when they are imported, and are imported when a spec names them."""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from robustcli.errors import RobustCliError
from robustcli.registry.catalog import Member, catalog, describe, package_of
from robustcli.registry.declarations import checked_declaration

T = TypeVar("T", bound=Callable[..., Any])
Base = TypeVar("Base", bound=type)


@dataclass(frozen=True)
class MemberSpec:
    """A member as named in a spec, with all parameters resolved.

    Args:
        parameters: arguments of its builder; members inside it are `MemberSpec`s too.
        options: settings that every member in this place has, such as the validation size of a data set.
    """

    family: str
    name: str
    parameters: dict[str, Any]
    options: Any = None

    @property
    def member(self) -> Member:
        """The registered member."""
        return describe(self.family, self.name)


class Registry:
    """The members of one family. Importing a file registers its members; `get` imports a member by name.

    Attributes:
        base: protocol of the family, with the defaults of what other code reads; None if members need not follow one.
    """

    def __init__(self, family: str) -> None:
        self.family = family
        self.base: type | None = None
        self._registered: dict[str, Callable[..., Any]] = {}
        self._fixed: dict[str, dict[str, Any]] = {}

    def register(self, name: str, **declared: Any) -> Callable[[T], T]:
        """Add a member under `name`.

        Args:
            declared: declaration as literals; see `Declaration`. With `fixed` one function may be several members.

        Raises:
            RobustCliError: the declaration is invalid, or another member has the name.
        """
        checked_declaration(self.family, declared, f"{self.family} '{name}'")

        def add(member: T) -> T:
            known = self._registered.get(name)
            if known is not None:
                self._require_same(name, known.__module__, member.__module__)
            self._registered[name] = member
            self._fixed[name] = declared.get("fixed", {})
            return member

        return add

    def get(self, name: str) -> Callable[..., Any]:
        """Return the member, with the parameters that its name fixes; import its file if necessary.

        Raises:
            RobustCliError: the name is unknown, or a plugin that was imported for another member has one of this name.
        """
        if name not in self._registered:
            importlib.import_module(describe(self.family, name).module)
        member, fixed = self._registered[name], self._fixed[name]
        if name in catalog(self.family):
            self._require_same(name, describe(self.family, name).module, member.__module__)
        return partial(member, **fixed) if fixed else member

    def _require_same(self, name: str, module: str, other: str) -> None:
        if module != other:
            raise RobustCliError(f"two {self.family} are named '{name}': in {module} and in {other}")

    def protocol(self, base: Base) -> Base:
        """Class decorator of the protocol that the members follow."""
        self.base = base
        return base

    def require_protocol(self, built: Any) -> None:
        """Check that a member has everything that other code reads.

        Raises:
            RobustCliError: its class does not derive from the protocol of the family, and lacks a part of it.
        """
        kind = type(built)
        if self.base is not None and (lacking := _lacking(kind, self.base)):
            raise RobustCliError(
                f"{kind.__module__}.{kind.__qualname__} does not have {', '.join(sorted(lacking))}; derive it from "
                f"{self.base.__module__}.{self.base.__qualname__}, which has defaults"
            )

    def __iter__(self) -> Iterator[str]:
        return iter(catalog(self.family))


def registry_of(family: str) -> Registry:
    """Return the registry of a family."""
    found: Registry = getattr(importlib.import_module(package_of(family)), family.upper())
    return found


def _lacking(kind: type, base: type) -> set[str]:
    """Return the public names of a protocol that a class lacks, as attributes and as fields."""
    names = {name for name in (*vars(base), *base.__annotations__) if not name.startswith("_") or name == "__call__"}
    # Not by hasattr, because every class can be called.
    own = {name for parent in kind.__mro__ for name in (*vars(parent), *vars(parent).get("__annotations__", {}))}
    return names - own


def instantiate(chosen: MemberSpec, *positional: Any) -> Any:
    """Import a member and call it with its parameters; then replace fields of the object that it returned.

    Args:
        positional: further arguments of the family's members, such as the shape of images; nested members get the
            same.
    """
    member = describe(chosen.family, chosen.name)
    values = {name: _instantiate_value(value, positional) for name, value in chosen.parameters.items()}
    registry = registry_of(chosen.family)
    own = {name: value for name, value in values.items() if name in member.parameters}
    built = registry.get(chosen.name)(*positional, **own)
    registry.require_protocol(built)
    replaced = {name: value for name, value in values.items() if name not in member.parameters}
    return replace(built, **replaced) if replaced else built


def _instantiate_value(value: Any, positional: tuple[Any, ...]) -> Any:
    if isinstance(value, MemberSpec):
        return instantiate(value, *positional)
    if isinstance(value, list):
        return [_instantiate_value(item, positional) for item in value]
    if isinstance(value, dict):
        return {key: _instantiate_value(item, positional) for key, item in value.items()}
    return value
