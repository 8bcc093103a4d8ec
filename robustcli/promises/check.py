"""The promises of one member, ready to run."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

from robustcli.architectures import ImageShape
from robustcli.promises import (
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
    regularisers,
    schedules,
    spanning,
    weights,
)
from robustcli.promises.build import (
    body_builder,
    build,
    optimizer_maker,
    suitable_shape,
    usual_norm,
    whole_spec,
)
from robustcli.registry.catalog import Member, describe
from robustcli.registry.types import AttackBn, Norm

_DEFENSE = (
    defenses.lowers_its_loss,
    defenses.trains_every_parameter,
    defenses.restores_modes,
    defenses.keeps_weights_when_it_fails,
    defenses.updates_once_per_step,
    defenses.forgets_earlier_gradients,
    defenses.reports_scalars,
    defenses.repeats_itself,
    defenses.continues_from_its_state,
    defenses.treats_class_shares_as_labels,
    defenses.smooths_its_loss_alone,
    defenses.says_what_it_is,
)
_ARCHITECTURE = (
    architectures.gives_logits,
    architectures.sees_one_image_at_a_time,
    architectures.every_parameter_learns,
    architectures.is_drawn_from_the_seed,
)
_EVALUATOR = (
    evaluators.lets_the_right_live_at_radius_0,
    evaluators.takes_the_smallest_batches,
    evaluators.evaluator_repeats_itself,
    evaluators.keeps_to_its_batch_size,
    evaluators.names_its_stages,
)
_WEIGHTS = (
    weights.restores_the_weights,
    weights.restores_the_weights_after_an_error,
    weights.keeps_what_an_update_did,
    weights.moves_statistics_once,
    weights.repeats_itself,
)
_AVERAGING = (
    averaging.never_touches_the_model,
    averaging.shares_no_memory_with_the_model,
    averaging.is_undisturbed_by_looking,
    averaging.rests_on_weights_that_rest,
    averaging.continues_from_its_state,
    averaging.repeats_itself,
)
_MIXER = (
    mixers.stays_in_the_box,
    mixers.shares_sum_to_one,
    mixers.leaves_what_it_is_given,
    mixers.treats_class_shares_as_labels,
    mixers.repeats_itself,
    mixers.takes_a_single_image,
)
_PREPROCESSOR = (
    preprocessors.stays_in_the_box,
    preprocessors.has_the_size_that_it_states,
    preprocessors.gives_a_gradient,
    preprocessors.transforms_each_image_alone,
    preprocessors.states_its_randomness,
)
_REGULARISER = (
    regularisers.leaves_all_but_gradients,
    regularisers.leaves_held_weights,
    regularisers.is_finite_and_scalar,
    regularisers.treats_class_shares_as_labels,
    regularisers.continues_from_its_state,
    regularisers.repeats_itself,
)
_SCHEDULE = (schedules.stays_between_0_and_1, schedules.depends_only_on_progress)
_DIAGNOSTIC = (diagnostics.finds_plain_data, diagnostics.finds_it_again, diagnostics.leaves_the_network_alone)


@dataclass(frozen=True)
class Case:
    """One promise of one member.

    Args:
        name: name of the promise, with its arguments in brackets.
        run: raises AssertionError if the promise is broken.
        is_advice: whether a broken promise is only a warning.
    """

    name: str
    run: Callable[[], None]
    is_advice: bool = False


def cases_of(member: Member) -> Iterator[Case]:
    """Yield every promise of a member, with its declared cheap settings."""
    for promise in (
        description.source_is_what_is_imported,
        description.smoke_gives_what_has_no_default,
        description.has_reference_and_describes_every_parameter,
    ):
        yield _case(promise, member)
    if member.family in description.ADVISED:
        yield _case(description.says_when_to_use_it, member, is_advice=True)
    if member.family != "diagnostics":
        yield Case("can_be_named_in_a_spec", partial(_named_in_a_spec, member))
    yield from _FAMILIES[member.family](member)


def _case(promise: Callable[..., None], *given: Any, on: str = "", is_advice: bool = False) -> Case:
    name = promise.__name__ + (f"[{on}]" if on else "")
    return Case(name, partial(promise, *given), is_advice)


def _named_in_a_spec(member: Member) -> None:
    spec = whole_spec(member, member.smoke)
    assert type(spec).parse(spec.to_yaml(), "the printed spec") == spec, "a spec with it changes when it is printed"


def _each(promises: tuple[Callable[..., None], ...]) -> Callable[[Member], Iterator[Case]]:
    """Promises of a family whose members need no further arguments."""

    def cases(member: Member) -> Iterator[Case]:
        if member.family in spanning.DRIVES:
            yield Case("declares_that_it_spans_training", lambda: _spanning(member, build(member, member.smoke)))
        for promise in promises:
            yield Case(promise.__name__, lambda promise=promise: promise(build(member, member.smoke)))  # type: ignore[misc]

    return cases


def _attack(member: Member) -> Iterator[Case]:
    attack = build(member, member.smoke)
    for norm in member.norms:
        for channels in (1, 3):
            yield _case(attacks.stays_inside, attack, norm, channels, on=f"{norm}, {channels} channels")
        for promise in (
            attacks.at_radius_0_returns_x,
            attacks.repeats_itself,
            attacks.treats_each_image_alone,
            attacks.treats_class_shares_as_labels,
        ):
            yield _case(promise, attack, norm, on=norm)
    for mode in get_args(AttackBn):
        for leaves in (attacks.leaves_the_model_alone, attacks.leaves_the_model_alone_when_it_fails):
            yield _case(leaves, attack, usual_norm(member), mode, on=mode)
    for norm in get_args(Norm):
        if norm not in member.norms:
            yield _case(attacks.refuses, attack, norm, on=norm)
    if member.passes is not None:
        yield _case(costs.costs_at_most_what_it_declares, member)


def _defense(member: Member) -> Iterator[Case]:
    def tried(promise: Callable[..., None]) -> Callable[[], None]:
        def run() -> None:
            defense = build(member, member.smoke)
            with _paired(member, defense):
                promise(defense)

        return run

    for promise in _DEFENSE:
        yield Case(promise.__name__, tried(promise))
    yield Case("declares_that_it_spans_training", tried(partial(_spanning, member)))
    yield Case("costs_what_it_declares", partial(_cost, member), is_advice=member.passes is None)


def _spanning(member: Member, built: Any) -> None:
    spanning.declares_that_it_spans_training(member.family, built, member.spans_training)


def _paired(member: Member, defense: Any) -> Any:
    """Test a defense on its own architecture, if it trains one."""
    if not member.trains or defenses.has_network(defense):
        return nullcontext()
    trained = describe("architectures", member.trains)
    body = body_builder(trained, trained.smoke)
    return defenses.trained_on(defense, partial(body, ImageShape(1, 8, 8, 10)))


def _cost(member: Member) -> None:
    with _paired(member, build(member, member.given)):
        if member.passes is not None:
            costs.costs_what_it_declares(member)
            return
        found = ", ".join(f"{count:g}" for count in costs.cost_of_update(member))
    raise AssertionError(f"no cost is declared; write passes=({found}) into the registration")


def _architecture(member: Member) -> Iterator[Case]:
    shape, body = suitable_shape(member, member.smoke), body_builder(member, member.smoke)
    for promise in _ARCHITECTURE:
        yield _case(promise, body, shape, on=shape.text)


def _evaluator(member: Member) -> Iterator[Case]:
    evaluator = build(member, member.smoke)
    for norm in get_args(Norm):
        yield _case(evaluators.gives_a_mask, evaluator, norm, on=norm)
    for promise in _EVALUATOR:
        yield _case(promise, evaluator)
    if member.passes is not None:
        yield _case(costs.costs_at_most_what_it_declares, member)


def _weights(member: Member) -> Iterator[Case]:
    # "none" means no part, in every family that has it.
    yield from _each(_WEIGHTS if member.name == "none" else (*_WEIGHTS, weights.moves_the_weights))(member)


def _regulariser(member: Member) -> Iterator[Case]:
    acts = () if member.name == "none" else (regularisers.does_something,)
    yield from _each((*_REGULARISER, *acts))(member)


def _diagnostic(member: Member) -> Iterator[Case]:
    for promise in _DIAGNOSTIC:
        yield _case(promise, build(member, member.smoke), "linf", on="linf")


def _dataset(member: Member) -> Iterator[Case]:
    yield _case(datasets.is_a_source, lambda: build(member, member.smoke))


def _optimizer(member: Member) -> Iterator[Case]:
    yield _case(optimizers.lowers_a_loss, optimizer_maker(member, member.smoke))


_FAMILIES: dict[str, Callable[[Member], Iterator[Case]]] = {
    "architectures": _architecture,
    "attacks": _attack,
    "averaging": _each(_AVERAGING),
    "datasets": _dataset,
    "defenses": _defense,
    "diagnostics": _diagnostic,
    "evaluators": _evaluator,
    "mixers": _each(_MIXER),
    "optimizers": _optimizer,
    "preprocessors": _each(_PREPROCESSOR),
    "regularisers": _regulariser,
    "schedules": _each(_SCHEDULE),
    "weights": _weights,
}
