"""The checks of one member, ready to run."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from inspect import isfunction, signature
from itertools import product
from types import ModuleType
from typing import Any, get_args

from robustcli.architectures import ImageShape
from robustcli.contracts import (
    architectures,
    attacks,
    averaging,
    costs,
    datasets,
    defenses,
    description,
    diagnostics,
    evaluators,
    mixers,
    optimizers,
    preprocessors,
    regularizers,
    schedules,
    spanning,
    weights,
)
from robustcli.contracts.build import (
    build,
    builder,
    suitable_shape,
    usual_norm,
    whole_spec,
)
from robustcli.registry.catalog import Member, describe
from robustcli.registry.signatures import without_doc
from robustcli.registry.types import AttackBn, Norm

# Combinations of the arguments of a check besides the member, by their names.
_Given = Mapping[tuple[str, ...], Iterable[tuple[Any, ...]]]


@dataclass(frozen=True)
class Case:
    """One check of one member.

    Args:
        name: name of the check, with its arguments in brackets.
        run: raises AssertionError if the check fails.
        is_advice: whether a failure is only a warning.
    """

    name: str
    run: Callable[[], None]
    is_advice: bool = False


def cases_of(member: Member) -> Iterator[Case]:
    """Yield every check of a member, with its declared cheap settings."""
    for check in (
        description.source_is_what_is_imported,
        description.smoke_gives_what_has_no_default,
        description.has_reference_and_describes_every_parameter,
    ):
        yield _case(check, member)
    if member.family in description.ADVISED:
        yield _case(description.says_when_to_use_it, member, is_advice=True)
    if member.family != "diagnostics":
        yield Case("can_be_named_in_a_spec", partial(_named_in_a_spec, member))
    yield from _FAMILIES[member.family](member)


def _case(check: Callable[..., None], *given: Any, on: str = "", is_advice: bool = False) -> Case:
    name = check.__name__ + (f"[{on}]" if on else "")
    return Case(name, partial(check, *given), is_advice)


def _named_in_a_spec(member: Member) -> None:
    spec = whole_spec(member, member.smoke)
    assert type(spec).parse(spec.to_yaml(), "the printed spec") == spec, "a spec with it changes when it is printed"


def checks_in(module: ModuleType) -> list[Callable[..., None]]:
    """Return the checks of a family: the public functions of its module that return nothing, in their order."""
    return [
        found
        for name, found in vars(module).items()
        if isfunction(found) and found.__module__ == module.__name__ and not name.startswith("_")
        if signature(found).return_annotation is None
    ]


def _each(module: ModuleType) -> Callable[[Member], Iterator[Case]]:
    """Checks of a family whose members need no further arguments."""

    def cases(member: Member) -> Iterator[Case]:
        if member.family in spanning.DRIVES:
            yield Case("declares_that_it_spans_training", lambda: _spanning(member, build(member, member.smoke)))
        for check in checks_in(module):
            yield Case(check.__name__, lambda check=check: check(build(member, member.smoke)))  # type: ignore[misc]

    return cases


def _given_to_each(module: ModuleType, built: Any, given: _Given) -> Iterator[Case]:
    """Checks of a built member, each with all its combinations of arguments."""
    for check in checks_in(module):
        _, *names = signature(check).parameters
        for values in given[tuple(names)]:
            yield _case(check, built, *values, on=", ".join(map(str, values)))


def _attack(member: Member) -> Iterator[Case]:
    given: _Given = {
        ("norm", "channels"): [*product(member.norms, (1, 3))],
        ("norm",): [(norm,) for norm in member.norms],
        ("norm", "attack_bn"): [(usual_norm(member), mode) for mode in get_args(without_doc(AttackBn)[0])],
        ("norm", "metrics"): [(usual_norm(member), member.metrics)],
        ("unsupported",): [(norm,) for norm in get_args(Norm) if norm not in member.norms],
    }
    yield from _given_to_each(attacks, build(member, member.smoke), given)
    if member.passes is not None:
        yield _case(costs.costs_at_most_what_it_declares, member)


def _defense(member: Member) -> Iterator[Case]:
    def tried(check: Callable[..., None]) -> Callable[[], None]:
        def run() -> None:
            defense = build(member, member.smoke)
            with _paired(member, defense):
                check(defense)

        return run

    for check in checks_in(defenses):
        yield Case(check.__name__, tried(check))
    yield Case("declares_that_it_spans_training", tried(partial(_spanning, member)))
    yield Case("costs_what_it_declares", partial(_cost, member), is_advice=member.passes is None)


def _spanning(member: Member, built: Any) -> None:
    spanning.declares_that_it_spans_training(member.family, built, member.spans_training)


def _paired(member: Member, defense: Any) -> Any:
    """Test a defense on its own architecture, if it trains one."""
    if not member.trains or defenses.has_network(defense):
        return nullcontext()
    trained = describe("architectures", member.trains)
    body = builder(trained, trained.smoke)
    return defenses.trained_on(defense, partial(body, ImageShape(1, 8, 8, 10)))


def _cost(member: Member) -> None:
    with _paired(member, build(member, member.given)):
        if member.passes is not None:
            costs.costs_what_it_declares(member)
            return
        found = ", ".join(f"{count:g}" for count in costs.cost_of_update(member))
    raise AssertionError(f"no cost is declared; write passes=({found}) into the registration")


def _architecture(member: Member) -> Iterator[Case]:
    shape, body = suitable_shape(member, member.smoke), builder(member, member.smoke)
    for check in checks_in(architectures):
        yield _case(check, body, shape, on=shape.text)


def _evaluator(member: Member) -> Iterator[Case]:
    given: _Given = {("norm",): [(norm,) for norm in get_args(Norm)], (): [()]}
    yield from _given_to_each(evaluators, build(member, member.smoke), given)
    if member.passes is not None:
        yield _case(costs.costs_at_most_what_it_declares, member)


def _diagnostic(member: Member) -> Iterator[Case]:
    yield from _given_to_each(diagnostics, build(member, member.smoke), {("norm",): [("linf",)]})


def _dataset(member: Member) -> Iterator[Case]:
    yield _case(datasets.is_a_source, lambda: build(member, member.smoke))


def _optimizer(member: Member) -> Iterator[Case]:
    yield _case(optimizers.lowers_a_loss, builder(member, member.smoke))


_FAMILIES: dict[str, Callable[[Member], Iterator[Case]]] = {
    "architectures": _architecture,
    "attacks": _attack,
    "averaging": _each(averaging),
    "datasets": _dataset,
    "defenses": _defense,
    "diagnostics": _diagnostic,
    "evaluators": _evaluator,
    "mixers": _each(mixers),
    "optimizers": _optimizer,
    "preprocessors": _each(preprocessors),
    "regularizers": _each(regularizers),
    "schedules": _each(schedules),
    "weights": _each(weights),
}
