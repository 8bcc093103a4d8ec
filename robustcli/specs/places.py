"""Guards, and places in a spec: attacks and evaluators at any depth, and the threat that holds there."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from robustcli.registry.registry import MemberSpec
from robustcli.specs.settings import ThreatSettings

Where = tuple[str | int, ...]
# Results of a guard: places in a spec with their problems.
Findings = Iterator[tuple[Where, str]]
Guard = Callable[..., Findings]
# Combinations that are refused; legal ones that are probably not intended; and those that the author should know about.
Level = Literal["refuse", "warn", "note"]
GUARDS: dict[Level, list[Guard]] = {"refuse": [], "warn": [], "note": []}


def guard(level: Level) -> Callable[[Guard], Guard]:
    """Register a check of a combination of settings; see guards.py."""

    def add(check: Guard) -> Guard:
        GUARDS[level].append(check)
        return check

    return add


def attacks(defense: MemberSpec, evaluate: Mapping[str, MemberSpec]) -> Iterator[tuple[Where, MemberSpec]]:
    """Yield every attack of a spec. A defense whose attack is not replaced is yielded for its own attack."""
    if not isinstance(defense.parameters.get("attack"), MemberSpec):
        yield ("defense",), defense
    yield from attacks_inside(defense, ("defense",))
    for key, evaluator in evaluate.items():
        yield from attacks_inside(evaluator, ("evaluate", key))


def attacks_inside(value: Any, where: Where) -> Iterator[tuple[Where, MemberSpec]]:
    """Yield every attack of a part of a spec."""
    return _of_family("attacks", value, where)


def evaluators_inside(value: Any, where: Where) -> Iterator[tuple[Where, MemberSpec]]:
    """Yield every evaluator of a part of a spec."""
    return _of_family("evaluators", value, where)


def members_inside(value: Any, where: Where) -> Iterator[tuple[Where, MemberSpec]]:
    """Yield every member of a part of a spec, including itself."""
    if isinstance(value, MemberSpec):
        yield where, value
        value = value.parameters
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from members_inside(item, (*where, key))


def _of_family(family: str, value: Any, where: Where) -> Iterator[tuple[Where, MemberSpec]]:
    return ((place, chosen) for place, chosen in members_inside(value, where) if chosen.family == family)


def threat_at(where: Where, evaluate: Mapping[str, MemberSpec], threat: ThreatSettings) -> ThreatSettings:
    """Return the threat at a place of the spec: that of the innermost evaluator with its own, or the spec's."""
    if where[0] != "evaluate":
        return threat
    inner: Any = evaluate
    for key in where[1:]:
        inside: Any = inner.parameters if isinstance(inner, MemberSpec) else inner
        inner = inside[key]
        if isinstance(inner, MemberSpec) and {"norm", "eps"} <= inner.parameters.keys():
            threat = ThreatSettings(norm=inner.parameters["norm"], eps=inner.parameters["eps"])
    return threat


def not_a_pixel(size: float) -> str:
    """Return the message about a length in linf that is above 1."""
    return f"{size:g} is larger than the pixel range [0, 1]; write {size:g}/255"
