"""HopSkipJump against closed forms, its budget, and its use of decisions only."""

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from judging import noise, predictions, standing
from torch import Tensor, nn

from robustcli.attacks.hop_skip_jump import HopSkipJump, _Oracle
from robustcli.attacks.pgd import Pgd
from robustcli.contracts.networks import conv_net, images, linear_net
from robustcli.errors import RobustCliError
from robustcli.evaluation.passes import count_passes
from robustcli.evaluators.attack import Attacked
from robustcli.registry.types import Norm
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel

# Wider than the box.
WIDE: dict[Norm, Fraction] = {"linf": Fraction(1), "l2": Fraction(100)}
DUAL = {"linf": 1.0, "l2": 2.0}

in_its_norms = pytest.mark.parametrize("norm", list(WIDE))


class Decisions(nn.Module):
    """The decisions of a network: one-hot logits without a gradient."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return nn.functional.one_hot(logits.argmax(1), logits.shape[1]).to(x.dtype)


def linear() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A linear model of two classes that meet in the gray image, images, labels and the gaps of their logits."""
    model = linear_net(64, 2, seed=4, dtype=torch.float64)
    weight: Tensor = model[1].weight.detach()  # type: ignore[index]
    with torch.no_grad():
        model[1].bias.copy_(-weight.sum(1) / 2)  # type: ignore[index]
    x = 0.3 + 0.4 * images(20, dtype=torch.float64)
    y = predictions(model, x)
    with torch.no_grad():
        logits = model(x)
    return model, x, y, (logits.gather(1, y[:, None]) - logits.gather(1, 1 - y[:, None])).squeeze(1)


@in_its_norms
@pytest.mark.slow
def test_distance_shrinks_with_the_budget_to_that_of_a_linear_boundary(norm: Norm) -> None:
    model, x, y, gaps = linear()
    weight: Tensor = model[1].weight.detach()  # type: ignore[index]
    exact = gaps / torch.linalg.vector_norm(weight[0] - weight[1], ord=DUAL[norm])
    threat, decisions = ThreatModel(norm, WIDE[norm]), Decisions(model)
    ratios = []
    for queries in (100, 300, 1000, 10000):
        x_adv = HopSkipJump(queries=queries, keep="nearest")(decisions, x, y, threat, noise(20))
        assert (predictions(model, x_adv) != y).all()
        ratios.append(threat.size(x_adv - x) / exact)
        assert (ratios[-1] >= 1 - 1e-9).all()
    assert (ratios[1] < ratios[0]).all()
    assert (ratios[2] < ratios[1]).all()
    assert (ratios[3] < ratios[2]).all()
    assert (ratios[3] < 1.06).all()


@in_its_norms
def test_the_normal_is_that_of_the_boundary(norm: Norm) -> None:
    """At points of the boundary, the angle falls with the number of directions as for a mean of signs."""
    model, x, y, gaps = linear()
    weight: Tensor = model[1].weight.detach()  # type: ignore[index]
    away = (weight[1 - y] - weight[y]).view_as(x)
    points = x + (gaps / away.flatten(1).square().sum(1)).view(-1, 1, 1, 1) * away * (1 + 1e-9)
    oracle, rows, threat = _Oracle(model, y, 50), torch.arange(20), ThreatModel(norm, WIDE[norm])
    cosines = []
    for samples in (10, 100, 4000):
        normal = oracle.normal(points, rows, torch.full((20,), 0.01, dtype=x.dtype), samples, threat, noise(20))
        cosines.append(torch.cosine_similarity(normal.flatten(1), away.flatten(1)))
    assert cosines[0].mean() < 0.6
    assert (cosines[2] > 0.97).all()
    # A sign times a direction has the mean sqrt(2 / pi d) along the normal, and length 1.
    lean = 100 * 2 / (math.pi * 64)
    assert cosines[1].mean().item() == pytest.approx(math.sqrt(lean / (lean + 1)), rel=0.1)


class Constant(nn.Module):
    """One class for every point."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(torch.full((len(x),), self.number), 2).to(x.dtype)


@in_its_norms
def test_where_all_directions_agree_they_are_followed_or_fled(norm: Norm) -> None:
    """Subtracting their mean would leave zero."""
    x, y, rows, threat = images(20), torch.zeros(20, dtype=torch.int64), torch.arange(20), ThreatModel(norm, WIDE[norm])
    right, wrong = (
        _Oracle(Constant(number), y, 50).normal(x, rows, torch.full((20,), 0.1), 9, threat, noise(20))
        for number in (0, 1)
    )
    assert torch.equal(right, -wrong)
    # Nine directions of length 1, but for what the box cuts, add up to a length of about 3.
    assert (wrong.flatten(1).norm(dim=1) > 1).all()
    # Pixels at the border of the box could only move inwards.
    assert (wrong[x == 0] >= 0).all()
    assert (wrong[x == 1] <= 0).all()


class Slab(nn.Module):
    """Class 1 where the first pixel lies between two values."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        pixel = x[:, 0, 0, 0]
        return nn.functional.one_hot(((pixel > self.low) & (pixel < self.high)).long(), 2).to(x.dtype)


def test_a_jump_is_halved_until_it_ends_on_the_wrong_side() -> None:
    x, direction = torch.full((4, 1, 2, 2), 0.5), torch.zeros(4, 1, 2, 2)
    direction[:, 0, 0, 0] = torch.tensor([1.0, 1.0, -1.0, 1.0])
    oracle = _Oracle(Slab(0.49999, 0.6), torch.zeros(4, dtype=torch.int64), 4)
    ends, asked = oracle.jumped(x, torch.arange(4), direction, torch.tensor([0.05, 0.4, 0.4, 0.8]))
    # The third leaves the slab however often it is halved.
    assert ends[:, 0, 0, 0].tolist() == pytest.approx([0.55, 0.55, 0.5, 0.55])
    assert asked.tolist() == [1, 4, 16, 5]
    assert torch.equal(ends[:, 0, 1], x[:, 0, 1])


class Ball(nn.Module):
    """Class 1 in a ball around the gray image, class 0 outside."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(((x - 0.5).flatten(1).norm(dim=1) < 2.6).long(), 2).to(x.dtype)


@in_its_norms
def test_probes_are_closer_as_the_search_approaches_the_image(norm: Norm, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 0.1 first; then at the distance before the last bisection, over the number of coordinates."""
    model, x, y, _ = linear()
    threat, distances_asked, distances = ThreatModel(norm, WIDE[norm]), [], []
    normal = _Oracle.normal

    def seen(oracle: _Oracle, points: Tensor, rows: Tensor, distance: Tensor, *others: Any) -> Tensor:
        distances_asked.append(distance)
        distances.append(threat.size(points - x[rows]))
        return normal(oracle, points, rows, distance, *others)

    monkeypatch.setattr(_Oracle, "normal", seen)
    HopSkipJump(queries=1500, keep="nearest")(model, x, y, threat, noise(20))
    assert len(distances_asked) >= 4
    assert (distances_asked[0] == 0.1).all()
    for step in range(1, len(distances_asked)):
        # A jump is as long as the distance over sqrt(step), and what it ends at is drawn back to the boundary.
        assert (64 * distances_asked[step] >= distances[step] * (1 - 1e-9)).all()
        assert (64 * distances_asked[step] <= distances[step - 1] * (1 + 1 / math.sqrt(step)) + 1e-9).all()


@in_its_norms
def test_distance_to_a_curved_boundary_is_nearly_exact(norm: Norm) -> None:
    """From a dark image of 64 pixels, 3.2 away from the gray one: the way to the ball is along the diagonal."""
    x, y = torch.full((8, 1, 8, 8), 0.1, dtype=torch.float64), torch.zeros(8, dtype=torch.int64)
    threat, exact = ThreatModel(norm, WIDE[norm]), {"l2": 0.6, "linf": 0.075}[norm]
    x_adv = HopSkipJump(queries=5000, keep="nearest")(Ball(), x, y, threat, noise(8))
    assert (predictions(Ball(), x_adv) == 1).all()
    sizes = threat.size(x_adv - x)
    assert (sizes >= exact * (1 - 1e-9)).all()
    assert (sizes <= exact * {"l2": 1.03, "linf": 1.01}[norm]).all()


@in_its_norms
def test_no_image_exceeds_its_query_budget(norm: Norm) -> None:
    model, x = conv_net(3).eval(), images(6, 3)
    y, threat = predictions(model, x), ThreatModel(norm, WIDE[norm])
    attack = HopSkipJump(queries=400, samples=20, keep="nearest")
    together = 0
    for i in range(6):
        with count_passes(model) as passes:
            attack(model, x[i : i + 1], y[i : i + 1], threat, IndexedNoise(0, torch.tensor([i])))
        assert passes.gradients == 0
        assert passes.forwards <= 400
        together += passes.forwards
    with count_passes(model) as passes:
        attack(model, x, y, threat, noise(6))
    assert passes.forwards == together
    assert together > 6 * 200
    # Many short steps, whose queries must be counted.
    with count_passes(model) as passes:
        HopSkipJump(queries=1000, samples=1, keep="nearest")(model, x[:1], y[:1], threat, noise(1))
    assert 900 < passes.forwards <= 1000
    for queries in (1, 2, 10, 30):
        with count_passes(model) as passes:
            HopSkipJump(queries=queries)(model, x, y, threat, noise(6))
        assert passes.forwards <= 6 * queries


@in_its_norms
def test_broken_is_what_has_a_wrong_point_inside(norm: Norm) -> None:
    model, x, y, _ = linear()
    wide = ThreatModel(norm, WIDE[norm])
    nearest = HopSkipJump(queries=1000, keep="nearest")(model, x, y, wide, noise(20))
    sizes = wide.size(nearest - x)
    inside = ThreatModel(norm, Fraction(float(sizes.median()) * 1.0001))
    costs = []
    for attack in (HopSkipJump(queries=1000, keep="nearest"), HopSkipJump(queries=1000)):
        with count_passes(model) as passes:
            x_adv = attack(model, x, y, inside, noise(20))
        costs.append(passes.forwards)
        is_broken = predictions(model, x_adv) != y
        assert torch.equal(is_broken, sizes <= inside.radius)
        assert torch.equal(x_adv[~is_broken], x[~is_broken])
        assert (inside.size(x_adv - x) <= inside.radius).all()
    assert costs[1] < 0.8 * costs[0]


def test_what_noise_does_not_fool_is_returned_as_it_is() -> None:
    model, x, y, _ = linear()
    with torch.no_grad():
        model[1].bias[0] += 1000  # type: ignore[index]
    y = torch.zeros_like(y)
    for queries, tries, asked in ((500, 7, 8), (5, 7, 5)):
        with count_passes(model) as passes:
            x_adv = HopSkipJump(queries=queries, tries=tries)(model, x, y, ThreatModel("l2", WIDE["l2"]), noise(20))
        assert torch.equal(x_adv, x)
        assert passes.forwards == 20 * asked


@in_its_norms
def test_survivors_do_not_depend_on_batches(norm: Norm) -> None:
    model, x, y, _ = linear()
    threat = ThreatModel(norm, {"linf": Fraction(1, 300), "l2": Fraction(1, 30)}[norm])
    attack = HopSkipJump(queries=400, samples=30)
    found = [standing(Attacked(attack=attack, batch_size=size), model, x, y, threat, noise(20)) for size in (3, 20)]
    assert torch.equal(found[0], found[1])
    assert 0 < int(found[0].sum()) < 20


def test_masked_gradients_do_not_hide_adversarial_examples() -> None:
    model, x, y, _ = linear()
    decisions, threat = Decisions(model).requires_grad_(False), ThreatModel("l2", Fraction(1, 4))
    assert (predictions(decisions, HopSkipJump(queries=2000)(decisions, x, y, threat, noise(20))) != y).all()
    with pytest.raises(RobustCliError, match="gives no gradient"):
        Pgd()(decisions, x, y, threat, noise(20))


def test_l1_is_refused() -> None:
    model, x, y, _ = linear()
    with pytest.raises(RobustCliError, match="attack hop_skip_jump supports only linf and l2; the threat is l1"):
        HopSkipJump()(model, x, y, ThreatModel("l1", Fraction(1)), noise(20))
