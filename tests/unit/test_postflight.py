"""Planted models: apparent robustness is never trusted; a sound model is."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustcli.attacks import Attack
from robustcli.attacks.apgd import Apgd
from robustcli.attacks.hop_skip_jump import HopSkipJump
from robustcli.attacks.pgd import Pgd
from robustcli.attacks.spsa import Spsa
from robustcli.attacks.square import Square
from robustcli.contracts.networks import conv_net, images, linear_net
from robustcli.errors import EvaluationError
from robustcli.evaluation.evaluate import Result, evaluate
from robustcli.evaluators import AttackContext, Evaluator, Stage
from robustcli.evaluators.attack import Attacked
from robustcli.evaluators.autoattack import AutoAttack
from robustcli.evaluators.clean import Clean
from robustcli.evaluators.other_threat import Under
from robustcli.evaluators.worst_case import WorstCase
from robustcli.threat.noise import Noise
from robustcli.threat.threat import ThreatModel

THREAT = ThreatModel("linf", Fraction(1, 100))
PGD = Attacked(attack=Pgd(steps=10, keep="fooled"))
COUNT = 40


class Planted(nn.Module):
    """A sound network with changed images and logits."""

    def __init__(
        self,
        see: Callable[[Tensor], Tensor] = lambda x: x,
        say: Callable[[Tensor], Tensor] = lambda logits: logits,
    ) -> None:
        super().__init__()
        self.inner = conv_net(classes=4)
        self.see, self.say = see, say

    def forward(self, x: Tensor) -> Tensor:
        return self.say(self.inner(self.see(x)))


class Rounding(torch.autograd.Function):
    """Rounds to 8 levels, so its gradient is zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (8 * x).round() / 8

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return torch.zeros_like(grads[0])


def thermometer(x: Tensor) -> Tensor:
    """Mean of 8 thresholds, a staircase whose gradient is zero."""
    return torch.stack([(x > level / 8).to(x.dtype) for level in range(8)]).mean(0) + 0 * x


def found(model: nn.Module, evaluator: Any = PGD, threat: ThreatModel = THREAT) -> Result:
    model, x = model.eval(), images(COUNT)
    torch.manual_seed(0)
    with torch.no_grad():
        y = model(x).argmax(1)
    return evaluate("planted", {}, evaluator, model, x, y, threat, 0)


@pytest.mark.parametrize("evaluator", [PGD, AutoAttack(attacks=("apgd-ce", "apgd-t", "square"))])
@pytest.mark.parametrize("network", [conv_net(classes=4), linear_net(64)], ids=["conv", "linear"])
@pytest.mark.slow
def test_an_honest_model_is_trusted(evaluator: Any, network: nn.Module) -> None:
    result = found(network, evaluator)
    assert 0 < result.correct < COUNT
    assert (result.verdict, result.suspicions) == ("TRUSTED", [])
    assert result.is_upper_bound is (evaluator is PGD)


@pytest.mark.parametrize(
    ("evaluator", "is_upper_bound"),
    [
        (AutoAttack(attacks=("apgd-ce", "square"), engine="reference"), False),
        (AutoAttack(attacks=("apgd-ce",), engine="reference"), True),
        (AutoAttack(attacks=("apgd-ce", "square")), False),
        (WorstCase(members=[PGD, Attacked(attack=Spsa(steps=1, samples=2))]), False),
        (WorstCase(members=[PGD, Attacked(attack=HopSkipJump(queries=20))]), False),
        (Attacked(attack=Square(queries=5)), True),
        (Attacked(attack=Spsa(steps=1, samples=2)), True),
    ],
    ids=["package", "package by gradients", "native", "and spsa", "and hop skip jump", "square", "spsa"],
)
@pytest.mark.slow
def test_attacks_of_both_kinds_make_more_than_an_upper_bound(evaluator: Any, is_upper_bound: bool) -> None:
    assert found(linear_net(64), evaluator).is_upper_bound is is_upper_bound


def test_clean_accuracy_gets_no_checks() -> None:
    assert found(Planted(see=thermometer), Clean()).verdict == "TRUSTED"


@pytest.mark.parametrize("see", [Rounding.apply, thermometer], ids=["rounded", "thermometer"])
def test_staircases_are_suspect(see: Callable[[Tensor], Tensor]) -> None:
    result = found(Planted(see=see))
    assert result.verdict == "SUSPECT"
    assert any("the margin of the logits is zero on" in text for text in result.suspicions)
    assert any("even when every pixel may take any value" in text for text in result.suspicions)


@pytest.mark.slow
def test_a_staircase_is_suspect_to_autoattack_because_square_climbs_it() -> None:
    result = found(
        Planted(see=thermometer), AutoAttack(attacks=("apgd-ce", "square")), ThreatModel("linf", Fraction(1, 10))
    )
    assert result.verdict == "SUSPECT"
    assert any(text.startswith("square, which uses no gradients, broke") for text in result.suspicions)
    assert not result.is_upper_bound


def test_saturated_logits_are_suspect() -> None:
    result = found(Planted(say=lambda logits: 1e6 * logits))
    assert result.verdict == "SUSPECT"
    assert any("the gradient of cross-entropy is zero on" in text for text in result.suspicions)
    assert not any("the margin" in text for text in result.suspicions)


@pytest.mark.parametrize(
    ("evaluator", "is_suspect"),
    [
        (AutoAttack(attacks=("apgd-ce", "apgd-t")), True),
        (WorstCase(members=[Attacked(attack=Apgd(steps=10)), Attacked(attack=Apgd(steps=10, loss="dlr"))]), True),
        # A longer attack breaks more for that reason.
        (WorstCase(members=[Attacked(attack=Apgd(steps=10)), Attacked(attack=Apgd(steps=11, loss="dlr"))]), False),
        (WorstCase(members=[Attacked(attack=Apgd(steps=10, loss="dlr")), Attacked(attack=Apgd(steps=10))]), False),
    ],
    ids=["autoattack", "worst case", "longer", "other order"],
)
def test_cross_entropy_that_finds_little_is_suspect(evaluator: Any, is_suspect: bool) -> None:
    saturated = found(Planted(say=lambda logits: 1e6 * logits), evaluator, ThreatModel("linf", Fraction(1, 50)))
    assert any("that survived cross-entropy" in text for text in saturated.suspicions) is is_suspect


def test_an_attack_that_misses_what_chance_finds_is_suspect() -> None:
    class Lazy(Attack):
        def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
            return x

    result = found(conv_net(classes=4), Attacked(attack=Lazy()), ThreatModel("linf", Fraction(1, 5)))
    assert any("misclassified at one of 20 random points" in text for text in result.suspicions)


@pytest.mark.slow
def test_a_random_model_is_refused_or_suspect() -> None:
    model = Planted(say=lambda logits: logits + 0.01 * torch.randn_like(logits))
    with pytest.raises(EvaluationError, match=r"^INVALID: model: two equal calls"):
        found(model)
    result = found(model, AutoAttack(version="rand", attacks=("apgd-ce",)))
    assert result.verdict == "SUSPECT"
    assert "logits vary from call to call" in result.suspicions[0]


def test_a_model_without_numbers_is_invalid() -> None:
    with pytest.raises(EvaluationError, match=r"^INVALID: model: logits are not finite"):
        found(Planted(say=lambda logits: logits / 0 * 0))


def test_a_model_that_loses_its_numbers_under_attack_is_invalid() -> None:
    class Late(Planted):
        def forward(self, x: Tensor) -> Tensor:
            is_clean = (x - images(len(x))).abs().amax((1, 2, 3)) < 1e-6 if len(x) == COUNT else x.new_ones(len(x)) > 0
            logits: Tensor = self.inner(x)
            return torch.where(is_clean[:, None], logits, torch.nan)

    with pytest.raises(EvaluationError, match=r"^INVALID: the model gives logits that are not finite on"):
        found(Late(), Attacked(attack=Pgd(steps=1), batch_size=COUNT))


def test_train_mode_is_invalid() -> None:
    model, x = Planted().train(), images(COUNT)
    with pytest.raises(EvaluationError, match=r"^INVALID: model: .* in train mode"):
        evaluate("planted", {}, PGD, model, x, torch.zeros(COUNT, dtype=torch.int64), THREAT, 0)


def test_black_box_attacks_after_others_are_checked_separately() -> None:
    """A gradient-free attack that runs first does not show that gradients are masked."""

    class Blind(Attack):
        is_black_box = True

        def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
            return Pgd(steps=10, keep="fooled")(model, x, y, threat, rng)

    class First(Evaluator):
        batch_size = 50

        def stages(self, case: AttackContext) -> list[Stage]:
            return [Stage(name="noise", attack=Blind(), noise="a")]

    result = found(conv_net(classes=4), First())
    assert result.stages[0].broken > 0
    assert result.verdict == "TRUSTED"


@pytest.mark.parametrize("attack", [Pgd(steps=10, loss="margin", keep="fooled"), Square(queries=100)])
def test_attacks_under_two_threat_models_are_not_compared(attack: Attack) -> None:
    """An attack in a larger set breaks more images for that reason, not because other attacks failed."""
    narrow = AutoAttack(attacks=("apgd-ce",))
    wide = Under(norm="linf", eps=Fraction(1, 10), evaluator=Attacked(attack=attack))
    result = found(conv_net(classes=4), WorstCase(members=[narrow, wide]))
    assert result.stages[1].broken > 0.5 * result.stages[1].entered
    assert result.suspicions == []
    same = Under(norm="linf", eps=Fraction(1, 10), evaluator=AutoAttack(attacks=("apgd-ce",)))
    steeper = found(Planted(say=lambda logits: 1e6 * logits), WorstCase(members=[narrow, same, wide]))
    assert any(
        "that survived cross-entropy" in text or "which uses no gradients, broke" in text for text in steeper.suspicions
    ), "attacks under one of several threat models are compared"


def test_an_attack_that_would_gain_with_more_steps_is_suspect() -> None:
    result = found(conv_net(classes=4), Attacked(attack=Pgd(steps=4, step_size=1 / 1000, start="clean", keep="fooled")))
    assert any("8 steps of pgd break" in text for text in result.suspicions)
    assert not any("survived it with" in text for text in found(conv_net(classes=4)).suspicions)


def test_clean_accuracy_far_below_that_of_training_is_suspect() -> None:
    model, x = conv_net(classes=4).eval(), images(COUNT)
    with torch.no_grad():
        y = model(x).argmax(1)
    y[:20] = (y[:20] + 1) % 4
    settings = ("planted", {}, Clean(), model, x, y, THREAT, 0)
    assert evaluate(*settings).verdict == "TRUSTED"
    assert evaluate(*settings, expected_clean=0.6).verdict == "TRUSTED", "within chance"
    result = evaluate(*settings, expected_clean=0.9)
    assert any("clean accuracy is 50.0 %, but was 90.0 % on held-out images" in text for text in result.suspicions)
