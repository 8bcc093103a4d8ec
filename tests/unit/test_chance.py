"""A clean accuracy at chance level is never trusted, and the likely cause is named."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from robustcli.attacks.none import NoAttack
from robustcli.attacks.pgd import Pgd
from robustcli.evaluation.evaluate import Result, evaluate
from robustcli.evaluators.attack import Attacked
from robustcli.evaluators.clean import Clean
from robustcli.statistics import is_at_chance
from robustcli.threat.threat import ThreatModel

THREAT = ThreatModel("linf", Fraction(1, 255))
CLASSES, COUNT = 10, 60


class Reads(nn.Module):
    """Reads the label from the brightest of the first pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return 20 * x.flatten(1)[:, :CLASSES]


def examples() -> tuple[Tensor, Tensor]:
    y = torch.arange(COUNT) % CLASSES
    x = torch.rand(COUNT, 1, 4, 4, generator=torch.Generator().manual_seed(0)) / 4
    x.view(COUNT, -1)[torch.arange(COUNT), y] = 0.9
    return x, y


def assessed(model: nn.Module, x: Tensor, y: Tensor) -> list[Result]:
    evaluators = {"clean": Clean(), "attacked": Attacked(attack=Pgd(steps=2, keep="fooled"))}
    return [evaluate(name, {}, one, model.eval(), x, y, THREAT, 0) for name, one in evaluators.items()]


def test_an_accuracy_above_chance_is_trusted() -> None:
    assert [result.verdict for result in assessed(Reads(), *examples())] == ["TRUSTED", "TRUSTED"]


@pytest.mark.parametrize("shift", [1, -1, 3])
def test_shifted_labels_are_recognized(shift: int) -> None:
    x, y = examples()
    for result in assessed(Reads(), x, (y + shift) % CLASSES):
        assert result.verdict == "SUSPECT"
        assert f"on {COUNT} images the prediction is the label {-shift:+d}" in result.suspicions[0]


def test_nearly_black_images_are_recognized() -> None:
    x, y = examples()
    for result in assessed(Reads(), (x > 2).float() / 255, y):
        assert "nearly black" in result.suspicions[0]
        assert "every image is put into class 0" in result.suspicions[1]


def test_nearly_black_images_are_suspect_though_the_network_reads_them() -> None:
    x, y = examples()
    for result in assessed(Reads(), x / 20, y):
        assert len(result.suspicions) == 1
        assert "nearly black" in result.suspicions[0]


@given(total=st.integers(1, 2000), classes=st.integers(2, 1000))
def test_guessing_is_called_chance_and_certainty_is_not(total: int, classes: int) -> None:
    assert not is_at_chance(total, total, classes)
    assert is_at_chance(0, total, classes)
    if total > 1:
        assert is_at_chance(total // classes, total, classes)


def test_the_test_is_exact() -> None:
    assert is_at_chance(20, 100, 10)  # P(20 or more) is 0.0020
    assert not is_at_chance(21, 100, 10)  # and of 21 or more 0.0008


def test_an_attack_that_makes_no_pass_is_called_clean_accuracy() -> None:
    result = evaluate("attack", {}, Attacked(attack=NoAttack()), Reads().eval(), *examples(), THREAT, 0)
    assert result.verdict == "SUSPECT"
    assert "this is clean accuracy" in result.suspicions[0]
