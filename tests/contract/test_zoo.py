"""The contract refuses every broken member of the zoo for the stated reason."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import members
import pytest
import test_members
import zoo

from robustcli.architectures import ImageShape
from robustcli.contracts import architectures as architectures_contract
from robustcli.contracts import attacks as attacks_contract
from robustcli.contracts import averaging as averaging_contract
from robustcli.contracts import defenses as defenses_contract
from robustcli.contracts import description
from robustcli.contracts import diagnostics as diagnostics_contract
from robustcli.contracts import evaluators as evaluators_contract
from robustcli.contracts import schedules as schedules_contract
from robustcli.contracts import weights as weights_contract
from robustcli.registry.catalog import Member, catalog
from robustcli.registry.signatures import Parameter, argument_docs

SHAPE = ImageShape(1, 8, 8, 10)


def stays_inside(attack: Any) -> None:
    attacks_contract.stays_inside(attack, "linf", 1)


def in_linf(check: Callable[..., None]) -> Callable[[Any], None]:
    return lambda attack: check(attack, "linf")


def with_eval(check: Callable[..., None]) -> Callable[[Any], None]:
    return lambda attack: check(attack, "linf", "eval")


returns_x = in_linf(attacks_contract.at_radius_0_returns_x)
repeats = in_linf(attacks_contract.repeats_itself)
alone = in_linf(attacks_contract.treats_each_image_alone)
shares = in_linf(attacks_contract.treats_class_shares_as_labels)
leaves = with_eval(attacks_contract.leaves_the_model_alone)
leaves_when_it_fails = with_eval(attacks_contract.leaves_the_model_alone_when_it_fails)


def gives_a_mask(evaluator: Any) -> None:
    evaluators_contract.gives_a_mask(evaluator, "linf")


def on_small_images(check: Callable[..., None]) -> Callable[[Any], None]:
    return lambda body: check(lambda shape: body(64, shape.classes), SHAPE)


def of_a_diagnostic(check: Callable[..., None]) -> Callable[[Any], None]:
    return lambda diagnostic: check(diagnostic, "linf")


def training(step: type[zoo.Trained]) -> zoo.Training:
    return zoo.Training(step=step)


def averaged(running: type[zoo.Mean]) -> zoo.Averaged:
    return zoo.Averaged(running=running)


BROKEN: list[tuple[Callable[[Any], None], Any]] = [
    (of_a_diagnostic(diagnostics_contract.returns_plain_data), zoo.FindsNan()),
    (of_a_diagnostic(diagnostics_contract.returns_plain_data), zoo.FindsTensors()),
    (of_a_diagnostic(diagnostics_contract.returns_plain_data), zoo.FindsPercent()),
    (of_a_diagnostic(diagnostics_contract.returns_plain_data), zoo.FindsAnUnsortedCurve()),
    (of_a_diagnostic(diagnostics_contract.repeats_itself), zoo.FindsByChance()),
    (of_a_diagnostic(diagnostics_contract.leaves_the_network_alone), zoo.LeavesTheWeightsMoved()),
    (of_a_diagnostic(diagnostics_contract.leaves_the_network_alone), zoo.ForgetsItsHookWhenItFails()),
    (of_a_diagnostic(diagnostics_contract.does_not_depend_on_its_batches), zoo.LooksAtTheFirstBatch()),
    (stays_inside, zoo.LeavesTheBall()),
    (stays_inside, zoo.LeavesTheBox()),
    (stays_inside, zoo.ReturnsNan()),
    (stays_inside, zoo.WritesIntoItsInput()),
    (returns_x, zoo.MovesAtRadius0()),
    (leaves, zoo.ForgetsTheMode()),
    (leaves_when_it_fails, zoo.RestoresTheModeUnlessItFails()),
    (leaves, zoo.FillsGradients()),
    (leaves, zoo.FreezesTheWeights()),
    (leaves, zoo.MovesStatistics()),
    (alone, zoo.AttacksHalfOfTheBatch()),
    (alone, zoo.SharesOneDirection()),
    (repeats, zoo.DrawsGlobally()),
    (shares, zoo.IgnoresClassShares()),
    (defenses_contract.restores_modes, training(zoo.TrainsInEvalMode)),
    (defenses_contract.restores_modes, training(zoo.RestoresModesUnlessItFails)),
    (defenses_contract.restores_modes, training(zoo.SetsEveryModuleToTrain)),
    (defenses_contract.ignores_earlier_gradients, training(zoo.KeepsEarlierGradients)),
    (defenses_contract.updates_once_per_step, training(zoo.StepsTwice)),
    (defenses_contract.updates_once_per_step, training(zoo.NeverSteps)),
    (defenses_contract.lowers_its_loss, training(zoo.NeverSteps)),
    (defenses_contract.trains_every_parameter, training(zoo.TrainsTheLastLayerAlone)),
    (defenses_contract.keeps_weights_when_it_fails, training(zoo.StepsBeforeItFails)),
    (defenses_contract.reports_scalars, training(zoo.ReportsTheGraph)),
    (defenses_contract.repeats_itself, training(zoo.DrawsFromItsOwnGenerator)),
    (defenses_contract.continues_from_its_state, training(zoo.ForgetsItsState)),
    (defenses_contract.smooths_only_its_loss, training(zoo.SmoothsNothing)),
    (defenses_contract.smooths_only_its_loss, training(zoo.SmoothsItsAttackToo)),
    (defenses_contract.has_the_attributes_of_a_defense, zoo.Training(is_adversarial=None)),  # type: ignore[arg-type]
    (defenses_contract.has_the_attributes_of_a_defense, zoo.Training(replays=0)),
    (weights_contract.restores_the_weights, zoo.DoesNotRestore()),
    (weights_contract.restores_the_weights, zoo.RestoresByRounding()),
    (weights_contract.restores_the_weights_after_an_error, zoo.RestoresUnlessItFails()),
    (weights_contract.keeps_what_an_update_did, zoo.UndoesTheUpdate()),
    (weights_contract.updates_statistics_once, zoo.CountsStatisticsTwice()),
    (weights_contract.moves_the_weights, zoo.DoesNothing()),
    (averaging_contract.shares_no_memory_with_the_model, averaged(zoo.AliasesBuffers)),
    (averaging_contract.shares_no_memory_with_the_model, averaged(zoo.AliasesWeights)),
    (averaging_contract.never_touches_the_model, averaged(zoo.WritesTheAverageIntoTheModel)),
    (averaging_contract.never_touches_the_model, averaged(zoo.PutsTheModelIntoEvalMode)),
    (averaging_contract.is_not_changed_by_evaluating_it, averaged(zoo.CountsLookingAsAnUpdate)),
    (averaging_contract.continues_from_its_state, averaged(zoo.ForgetsHowManyItTookIn)),
    (averaging_contract.keeps_constant_weights, averaged(zoo.ShrinksTheWeights)),
    (schedules_contract.stays_between_0_and_1, zoo.goes_below_0),
    (schedules_contract.stays_between_0_and_1, zoo.goes_above_1),
    (schedules_contract.stays_between_0_and_1, zoo.is_undefined_at_the_end),
    (schedules_contract.depends_only_on_progress, zoo.RemembersItsCalls()),
    (on_small_images(architectures_contract.treats_each_image_alone), zoo.SeesTheWholeBatch),
    (on_small_images(architectures_contract.gives_logits), zoo.GivesProbabilities),
    (on_small_images(architectures_contract.gives_logits), zoo.GivesNanInEvalMode),
    (on_small_images(architectures_contract.every_parameter_learns), zoo.HasAnUnusedWeight),
    (on_small_images(architectures_contract.every_parameter_learns), zoo.CutsAGradient),
    (on_small_images(architectures_contract.is_drawn_from_the_seed), zoo.StartsFromTheClock),
    (evaluators_contract.names_its_stages, zoo.NamesTwoStagesAlike()),
    (evaluators_contract.names_its_stages, zoo.AttacksWhatItFeelsLike()),
    (evaluators_contract.keeps_to_its_batch_size, zoo.ForgetsItsBatchSize()),
]

# Sound versions of the broken members.
SOUND: list[tuple[Callable[[Any], None], Any]] = [
    *((check, training(zoo.Trained)) for check in dict.fromkeys(p for p, m in BROKEN if isinstance(m, zoo.Training))),
    *((check, averaged(zoo.Mean)) for check in dict.fromkeys(p for p, m in BROKEN if isinstance(m, zoo.Averaged))),
    *(
        (on_small_images(check), zoo.Body)
        for check in (
            architectures_contract.treats_each_image_alone,
            architectures_contract.gives_logits,
            architectures_contract.every_parameter_learns,
            architectures_contract.is_drawn_from_the_seed,
        )
    ),
]


def name_of(value: object) -> str:
    made_of = getattr(value, "step", None) or getattr(value, "running", None) or value
    return str(getattr(made_of, "__name__", type(made_of).__name__)).strip("<>")


@pytest.mark.parametrize(("check", "member"), BROKEN, ids=name_of)
def test_contract_refuses(check: Callable[[Any], None], member: Any) -> None:
    with pytest.raises(AssertionError):
        check(member)


@pytest.mark.parametrize(("check", "member"), SOUND, ids=name_of)
def test_contract_lets_sound_relatives_pass(check: Callable[[Any], None], member: Any) -> None:
    check(member)


def dead_options() -> Member:
    """A catalog entry for the attack with dead options, with the parameters of pgd."""
    pgd = catalog("attacks")["pgd"]
    parameters = {name: pgd.parameters[name] for name in ("start", "restarts")}
    return replace(pgd, name="dead", doc=zoo.HasDeadOptions.__doc__ or "", parameters=parameters, smoke={})


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> Member:
    member = dead_options()
    monkeypatch.setattr(
        members, "build", lambda _member, settings: zoo.HasDeadOptions(**{"start": "random", **settings})
    )
    return member


def test_contract_refuses_a_dead_choice(dead: Member) -> None:
    start = dead.parameters["start"]
    with pytest.raises(pytest.fail.Exception, match="does what"):
        test_members.choices_differ(dead, start, members.choices_of(start))


def test_contract_refuses_a_dead_number(dead: Member) -> None:
    with pytest.raises(pytest.fail.Exception, match="changes nothing"):
        test_members.some_other_value_differs(dead, dead.parameters["restarts"])


@pytest.mark.parametrize(
    ("doc", "told"),
    [
        ("Does.\n\nArgs:\n    steps: gradient steps.\n", "Reference"),
        ("Does.\n\nReference: a paper.", "Args"),
        ("Does.\n\nArgs:\n    steps: gradient steps.\n    spare: is not there.\n\nReference: a paper.", "Args"),
        ("Does.\n\nArgs:\n    steps: many\n\nReference: a paper.", "not described"),
    ],
)
def test_contract_refuses_a_thin_docstring(doc: str, told: str) -> None:
    described = {name: text for name, text in argument_docs(doc).items() if name == "steps"}
    steps = Parameter("steps", int, 1, described.get("steps", ""))
    member = replace(catalog("attacks")["pgd"], doc=doc, parameters={"steps": steps})
    with pytest.raises(AssertionError, match=told):
        description.has_reference_and_describes_every_parameter(member)
