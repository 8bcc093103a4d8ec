import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import pytest
import torch
from judging import noise, predictions, standing
from torch import Tensor, nn

from robustcli.attacks import Attack
from robustcli.attacks.pgd import Pgd
from robustcli.errors import EvaluationError, RobustCliError
from robustcli.evaluators import EVALUATORS
from robustcli.evaluators.attack import Attacked
from robustcli.evaluators.clean import Clean
from robustcli.evaluators.worst_case import WorstCase
from robustcli.registry.registry import describe
from robustcli.threat.noise import IndexedNoise, Noise
from robustcli.threat.threat import ThreatModel

LINF = ThreatModel("linf", Fraction(1, 10))


def network(classes: int, shape: tuple[int, int, int] = (1, 8, 8), seed: int = 0) -> nn.Module:
    """A random linear network, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = shape
    layer = nn.Linear(channels * height * width, classes)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
        layer.bias.zero_()
    return nn.Sequential(nn.Flatten(), layer).eval()


class Brightness(nn.Module):
    """The logit of class 1 is the first pixel; those of classes 0 and 2 are a half and 0."""

    def forward(self, x: Tensor) -> Tensor:
        pixel = x.flatten(1)[:, 0]
        return torch.stack([torch.full_like(pixel, 0.5), pixel, torch.zeros_like(pixel)], 1)


def images(count: int, shape: tuple[int, int, int] = (1, 8, 8), seed: int = 1) -> Tensor:
    return torch.rand((count, *shape), generator=torch.Generator().manual_seed(seed))


def said(call: Callable[[], Tensor]) -> tuple[Tensor, list[str]]:
    """The result of a call and its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = call()
    return result, [str(warning.message) for warning in caught]


@dataclass(frozen=True)
class Shift(Attack):
    """Adds a constant, even outside the threat set; records its inputs."""

    by: float = 0.0
    seen: list[tuple[int, ...]] = field(default_factory=list)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        assert isinstance(rng, IndexedNoise)
        assert len(rng.index) == len(x) == len(y)
        self.seen.append(tuple(rng.index.tolist()))
        return x + self.by


@dataclass(frozen=True)
class RandomPoint(Attack):
    """One random point of the threat set."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        return threat.sample(x, rng)


@dataclass(frozen=True)
class Overwriting(Attack):
    """Leaves the ball by changing its input in place."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        return x.copy_(1 - x)


@dataclass(frozen=True)
class NotANumber(Attack):
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        x_adv = x.clone()
        x_adv[0, 0, 0, 0] = torch.nan
        return x_adv


@dataclass(frozen=True)
class Fixed(Attack):
    """Breaks images of given numbers with known points, and records which images it gets."""

    points: dict[int, Tensor]
    asked: list[list[int]] = field(default_factory=list)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        assert isinstance(rng, IndexedNoise)
        numbers = rng.index.tolist()
        self.asked.append(numbers)
        return torch.stack([self.points.get(number, image) for number, image in zip(numbers, x, strict=True)])


def test_the_folder_registers_these_with_a_reference() -> None:
    assert set(EVALUATORS) >= {"attack", "autoattack", "clean", "worst_case"}
    for name in ("attack", "autoattack", "clean", "worst_case"):
        member = describe("evaluators", name)
        assert "Reference:" in member.doc
        assert all(parameter.doc for parameter in member.parameters.values())
        assert set(member.smoke) <= set(member.parameters)


class TestClean:
    def test_counts_right_images_in_any_batches(self) -> None:
        model, x = network(5), images(7)
        y = predictions(model, x)
        y[2] = (y[2] + 1) % 5
        for batch_size in (1, 3, 100):
            survives = standing(Clean(batch_size=batch_size), model, x, y, LINF, noise(7))
            assert survives.tolist() == [True, True, False, True, True, True, True]

    def test_a_tie_is_won_by_the_class_with_the_lower_number(self) -> None:
        """A tie with another class does not count as correct."""
        x, y = torch.full((3, 1, 1, 1), 0.5), torch.arange(3)
        assert standing(Clean(), Brightness().eval(), x, y, LINF, noise(3)).tolist() == [True, False, False]

    def test_logits_that_are_not_finite_are_an_error(self) -> None:
        model, x = network(3), images(2)
        with torch.no_grad():
            model[1].weight.fill_(torch.inf)
        with pytest.raises(EvaluationError, match="not finite on 2 of 2"):
            standing(Clean(), model, x, torch.zeros(2, dtype=torch.int64), LINF, noise(2))


class TestAttacked:
    def test_attacks_only_images_still_classified_correctly(self) -> None:
        model, x = network(5), images(6)
        y = predictions(model, x)
        y[1] = (y[1] + 1) % 5
        attack = Shift()
        survives = standing(Attacked(attack=attack, batch_size=3), model, x, y, LINF, noise(6))
        assert survives.tolist() == [True, False, True, True, True, True]
        assert attack.seen == [(0, 2, 3), (4, 5)]

    def test_a_tie_may_break_an_image(self) -> None:
        model, x, y = Brightness().eval(), torch.full((1, 1, 1, 1), 0.5625), torch.tensor([1])
        assert standing(Attacked(attack=Shift()), model, x, y, LINF, noise(1)).all()
        assert not standing(Attacked(attack=Shift(-0.0625)), model, x, y, LINF, noise(1)).any()

    def test_batch_size_changes_nothing(self) -> None:
        model, x = network(4), images(40)
        y = predictions(model, x)
        masks = [
            standing(Attacked(attack=RandomPoint(), batch_size=size), model, x, y, LINF, noise(40)).tolist()
            for size in (1, 7, 40)
        ]
        assert masks[0] == masks[1] == masks[2]
        assert 0 < sum(masks[0]) < 40

    def test_seed_changes_the_noise(self) -> None:
        model, x = network(4), images(60)
        y = predictions(model, x)
        masks = [
            standing(Attacked(attack=RandomPoint()), model, x, y, LINF, noise(60, seed)).tolist() for seed in (0, 0, 1)
        ]
        assert masks[0] == masks[1] != masks[2]

    @pytest.mark.parametrize(
        ("attack", "message"),
        [
            (Shift(0.2), r"shift: 3 of 3 .* outside the threat set linf 0\.1: distance up to 0\.2 where 0\.1"),
            (Overwriting(), "overwriting: 3 of 3 adversarial images lie outside"),
            (NotANumber(), "not_a_number: 1 of 3 adversarial images hold values that are not finite"),
        ],
    )
    def test_an_attack_that_cheats_is_caught(self, attack: Any, message: str) -> None:
        model, x = network(5), images(3).clamp(0.2, 0.4)
        with pytest.raises(EvaluationError, match=message):
            standing(Attacked(attack=attack), model, x, predictions(model, x), LINF, noise(3))

    def test_an_attack_that_leaves_the_box_is_caught(self) -> None:
        model, x = network(5), torch.full((2, 1, 8, 8), 0.95)
        with pytest.raises(EvaluationError, match=r"pixels from .* to 1\.04"):
            standing(Attacked(attack=Shift(0.09)), model, x, predictions(model, x), LINF, noise(2))

    def test_images_of_another_shape_are_caught(self) -> None:
        @dataclass(frozen=True)
        class Half(Attack):
            def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
                return x[:1]

        model, x = network(5), images(3)
        with pytest.raises(EvaluationError, match=r"half: returned images of shape \(1, 1, 8, 8\)"):
            standing(Attacked(attack=Half()), model, x, predictions(model, x), LINF, noise(3))


def broken_by_pgd(count: int) -> tuple[nn.Module, Tensor, Tensor, dict[int, Tensor]]:
    """A model, images, labels, and a point for every image that fools the model."""
    model, x = network(4), images(count)
    y = predictions(model, x)
    points = Pgd(keep="fooled", loss="margin")(model, x, y, LINF, noise(count))
    assert (predictions(model, points) != y).all()
    return model, x, y, dict(enumerate(points))


class TestWorstCase:
    def test_is_the_intersection_and_attacks_only_survivors(self) -> None:
        model, x, y, points = broken_by_pgd(5)
        attacks = [Fixed({number: points[number] for number in broken}) for broken in ([4], [0, 2], [1])]
        evaluator = WorstCase(members=[Attacked(attack=attack) for attack in attacks])
        assert standing(evaluator, model, x, y, LINF, noise(5)).tolist() == [False, False, False, True, False]
        assert [attack.asked for attack in attacks] == [[[0, 1, 2, 3, 4]], [[0, 1, 2, 3]], [[1, 3]]]

    def test_stops_when_no_survivor_is_left(self) -> None:
        model, x, y, points = broken_by_pgd(2)
        last = Fixed({})
        evaluator = WorstCase(members=[Attacked(attack=Fixed(points)), Attacked(attack=last)])
        assert not standing(evaluator, model, x, y, LINF, noise(2)).any()
        assert last.asked == []

    def test_order_changes_nothing(self) -> None:
        model, x = network(4), images(40)
        y = predictions(model, x)
        members = [Attacked(attack=RandomPoint()), Attacked(attack=Pgd(steps=0, restarts=3)), Clean()]
        masks = [
            standing(WorstCase(members=list(order)), model, x, y, LINF, noise(40)).tolist()
            for order in (members, members[::-1])
        ]
        assert masks[0] == masks[1]

    def test_no_members_is_an_error(self) -> None:
        with pytest.raises(RobustCliError, match="at least one"):
            WorstCase(members=[])
