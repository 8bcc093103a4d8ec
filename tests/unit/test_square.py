"""The Square attack: its windows and bumps, on images of any size, and what it costs."""

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from judging import noise, predictions, standing
from pyautoattack import AutoAttack as Ensemble
from torch import Tensor, nn

from robustcli.attacks.losses import margin
from robustcli.attacks.pgd import Pgd
from robustcli.attacks.square import Square
from robustcli.attacks.square_ahead import MOST_FORWARDS, Ahead
from robustcli.attacks.square_tiles import (
    Proposals,
    _bump,
    _corners,
    _is_inside,
    _window,
    first_points,
    numbers_per_proposal,
    window_side,
)
from robustcli.contracts.networks import conv_net, images, labels
from robustcli.evaluation.passes import count_passes
from robustcli.evaluators.attack import Attacked
from robustcli.registry.types import Norm
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel

NORMS: list[Norm] = ["linf", "l2", "l1"]
EPS = {"linf": Fraction(1, 10), "l2": Fraction(1, 2), "l1": Fraction(3)}

in_every_norm = pytest.mark.parametrize("norm", NORMS)
in_l2_and_l1 = pytest.mark.parametrize("norm", ["l2", "l1"])


def proposal(best: Tensor, x: Tensor, threat: ThreatModel, side: int, seed: int = 0) -> Tensor:
    numbers = noise(len(x), seed).uniform(torch.empty(len(x), numbers_per_proposal(threat.norm, x.shape[1])))
    return Proposals(x, threat, numbers[:, None], [side]).at(torch.arange(len(x)), 0, best)


# Windows.


@pytest.mark.parametrize(
    ("pixels", "sides"),
    [(32, [29, 20, 14, 10, 7, 5, 4, 3]), (28, [25, 18, 13, 9, 6, 4, 3, 2]), (8, [7, 5, 4, 3, 2, 1])],
)
def test_windows_shrink_as_published(pixels: int, sides: list[int]) -> None:
    """Sides after 0, 11, 51, 201, 501, 1001, 2001 and 4001 queries of the fixed schedule."""
    attack = Square(schedule="fixed")
    queries = (0, 11, 51, 201, 501, 1001, 2001, 4001)
    found = [window_side(attack._share(query), pixels, pixels, "linf") for query in queries[: len(sides)]]
    assert found == sides
    before = [window_side(attack._share(query - 1), pixels, pixels, "linf") for query in queries[1 : len(sides)]]
    assert before == sides[:-1]


def test_the_rescaled_schedule_is_the_published_one_for_its_budget() -> None:
    short, full = Square(queries=500), Square(queries=10000, schedule="fixed")
    assert [short._share(query) for query in range(500)] == [full._share(20 * query) for query in range(500)]
    assert Square(queries=10000)._share(9999) == full._share(9999) == 0.8 / 512


@in_l2_and_l1
def test_sides_of_moved_windows_are_odd_and_fit(norm: Norm) -> None:
    for height in range(1, 12):
        for width in range(1, 12):
            for share in (0.8, 0.4, 0.1, 0.001):
                side = window_side(share, height, width, norm)
                assert side % 2 == 1
                assert 1 <= side <= min(height, width)
                assert side >= 3 or min(height, width) < 3


def test_every_place_is_as_likely_as_any_other() -> None:
    """The last row and column too."""
    x = torch.empty(20000, 1, 6, 7)
    numbers = noise(20000).uniform(torch.empty(20000, 1, 2))
    inside = _is_inside(_window(numbers[:, 0, 0], numbers[:, 0, 1], 3, x), 3)
    first = inside.flatten(1).int().argmax(1)
    assert torch.equal(first, _corners(numbers, torch.tensor([3]), 6, 7)[:, 0]), "both forms draw the same windows"
    assert (inside.flatten(1).sum(1) == 9).all()
    corners = inside.flatten(1).int().argmax(1).bincount(minlength=42).view(6, 7)
    assert (corners[4:] == 0).all()
    assert (corners[:, 5:] == 0).all()
    places = corners[:4, :5].float()
    assert (places - 1000).abs().max() < 5 * math.sqrt(1000)


def bump_by_layers(side: int, fading: int, order: int) -> np.ndarray:
    """Squares of side 1, 3, 5, ... around the middle of each half, laid on each other as far as the half goes."""

    def hill(height: int, width: int) -> np.ndarray:
        heights = np.zeros((height, width))
        for layer in range(max(height // 2, width // 2) + 1):
            top, left = height // 2 - layer, width // 2 - layer
            rows = slice(max(top, 0), top + 2 * layer + 1)
            columns = slice(max(left, 0), left + 2 * layer + 1)
            heights[rows, columns] += 1 / (layer + 1) ** fading
        return heights / np.linalg.norm(heights.ravel(), ord=order) if height else heights

    halves = np.concatenate([hill(side // 2, side), -hill(side - side // 2, side)])
    return halves / np.linalg.norm(halves.ravel(), ord=order)


@pytest.mark.parametrize("side", [1, 2, 3, 5, 6, 9])
@pytest.mark.parametrize(("norm", "fading", "order"), [("l2", 2, 2), ("l1", 4, 1)])
def test_bumps_are_layers_around_two_middles(norm: Norm, fading: int, order: int, side: int) -> None:
    found = _bump(side, norm, torch.float64, torch.device("cpu")).numpy()
    assert found == pytest.approx(bump_by_layers(side, fading, order), abs=1e-12)


# Proposals.


@in_every_norm
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (3, 3), (4, 4), (5, 7), (9, 6), (8, 8), (17, 32)])
def test_images_of_any_size_are_searched(norm: Norm, channels: int, size: tuple[int, int]) -> None:
    x = images(5, channels, 32)[:, :, : size[0], : size[1]]
    threat = ThreatModel(norm, EPS[norm])
    best = first_points(x, threat, noise(5))
    assert threat.contains(best, x).all()
    assert not torch.equal(best, x)
    for query in range(0, 5000, 97):
        side = window_side(Square()._share(query), *size, norm)
        best = proposal(best, x, threat, side, seed=query)
        assert best.shape == x.shape
        assert threat.contains(best, x).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_linf_moves_one_window_to_the_border(channels: int) -> None:
    x, threat = 0.3 + 0.4 * images(50, channels), ThreatModel("linf", EPS["linf"])
    best = first_points(x, threat, noise(50))
    signs = ((best - x) / threat.radius).round()
    assert torch.allclose((best - x).abs(), torch.tensor(threat.radius))
    assert (signs == signs[:, :, :1]).all(), "stripes are vertical"
    assert signs.unique().tolist() == [-1, 1]
    points = proposal(x, x, threat, 3)
    is_moved = points != x
    # The same nine pixels of each channel.
    assert (is_moved == is_moved[:, :1]).all()
    assert (is_moved[:, 0].flatten(1).sum(1) == 9).all()
    moves = (points - x)[is_moved].view(50, channels, 9)
    assert torch.allclose(moves.abs(), torch.tensor(threat.radius))
    assert (moves.sign() == moves.sign()[..., :1]).all(), "one sign for each channel"
    assert moves.sign().unique().tolist() == [-1, 1]


@pytest.mark.parametrize("channels", [1, 3])
def test_linf_windows_of_unequal_sides_are_as_drawn(channels: int) -> None:
    """Pixel by pixel, also where images are at queries of different sides; unchanged proposals are left out."""
    x, threat, sides = images(6, channels)[..., :7], ThreatModel("linf", EPS["linf"]), [5, 3, 3, 1]
    numbers = noise(6).uniform(torch.empty(6, len(sides), 2 + channels))
    proposals, best = Proposals(x, threat, numbers, sides), first_points(x, threat, noise(6))
    rows, queries = torch.arange(6).repeat_interleave(4), torch.arange(4).repeat(6)
    expected = best[rows].clone()
    for point, row, query in zip(expected, rows.tolist(), queries.tolist(), strict=True):
        side, drawn = sides[query], numbers[row, query]
        top, left = int(drawn[0] * (9 - side)), int(drawn[1] * (8 - side))
        moves = torch.where(drawn[2:] < 0.5, -threat.radius, threat.radius)[:, None, None]
        window = (slice(None), slice(top, top + side), slice(left, left + side))
        point[window] = (x[row][window] + moves).clamp(0, 1)
    assert torch.equal(proposals.at(rows, queries, best[rows]), expected)
    kept, points = proposals.changed(rows, queries, best)
    is_changed = (expected != best[rows]).flatten(1).any(1)
    assert torch.equal(kept, is_changed.nonzero().flatten())
    assert torch.equal(points, expected[kept])
    assert 0 < len(kept) < len(rows) or channels == 3
    for query in range(4):
        assert torch.equal(proposals.at(torch.arange(6), query, best), expected[query::4])


@in_l2_and_l1
@pytest.mark.parametrize("channels", [1, 3])
def test_l2_and_l1_move_what_a_window_held(norm: Norm, channels: int) -> None:
    """Away from the box and with the whole radius used, the rest of the image stays as it is."""
    x = torch.full((200, channels, 12, 12), 0.5, dtype=torch.float64)
    threat = ThreatModel(norm, Fraction(1, 10))
    order = {"l2": 2, "l1": 1}[norm]
    delta = noise(200).normal(x)
    best = x + delta * (threat.radius / threat.size(delta)).view(-1, 1, 1, 1)
    numbers = noise(200).uniform(torch.empty(200, numbers_per_proposal(norm, channels)))
    points = Proposals(x, threat, numbers[:, None], [3]).at(torch.arange(len(x)), 0, best)
    here = _is_inside(_window(numbers[:, 0], numbers[:, 1], 3, x), 3).expand_as(x)
    there = _is_inside(_window(numbers[:, 2], numbers[:, 3], 3, x), 3).expand_as(x)
    assert torch.allclose(threat.size(points - x), torch.tensor(threat.radius, dtype=torch.float64))
    left, kept = (points - x)[there & ~here], ~here & ~there
    assert (left.abs() < 1e-15).all(), "the second window is emptied"
    if norm == "l2" or channels == 1:
        assert torch.allclose(points[kept], best[kept], rtol=0, atol=1e-12)
        size = [
            torch.linalg.vector_norm(((p - x) * (here | there)).flatten(2), ord=order, dim=2) for p in (points, best)
        ]
        assert torch.allclose(size[0], size[1]), "each channel keeps its length"
    else:
        # More than fits is put in, and the projection takes as much from every pixel.
        assert ((points - x).abs()[kept] <= (best - x).abs()[kept] + 1e-15).all()


@in_l2_and_l1
def test_what_is_unused_of_the_radius_is_spent(norm: Norm) -> None:
    x = torch.full((20, 3, 12, 12), 0.5, dtype=torch.float64)
    threat = ThreatModel(norm, Fraction(1, 10))
    points = proposal(x, x, threat, 5)
    assert torch.allclose(threat.size(points - x), torch.tensor(threat.radius, dtype=torch.float64))
    assert ((points != x).flatten(1).sum(1) <= 3 * 25).all()


# The search.


@in_every_norm
def test_survivors_cost_at_most_one_forward_per_query_and_no_gradient(norm: Norm) -> None:
    model, x = conv_net(3).eval(), images(8, 3)
    y = predictions(model, x)
    threat = ThreatModel(norm, EPS[norm] / 10**4)
    with count_passes(model) as passes:
        x_adv = Square(queries=40)(model, x, y, threat, noise(8))
    assert (predictions(model, x_adv) == y).all()
    # Some proposals change nothing and need no pass.
    assert passes.gradients == 0
    assert 8 * 30 < passes.forwards <= 8 * 41
    once = passes.forwards
    with count_passes(model) as passes:
        Square(queries=40, restarts=2)(model, x, y, threat, noise(8))
    assert once < passes.forwards <= 8 * 82


def test_the_default_budget_is_the_one_of_autoattack() -> None:
    package = Ensemble(nn.Identity(), norm="Linf", eps=0.1, device="cpu").square
    attack = Square()
    assert (attack.queries, attack.restarts, attack.p_init) == (package.n_queries, package.n_restarts, package.p_init)


def test_an_image_leaves_the_batch_once_it_is_misclassified() -> None:
    model, x, y = conv_net(3).eval(), images(16, 3), labels(16)
    y[::2] = predictions(model, x)[::2]
    sizes: list[int] = []
    hook = model.register_forward_hook(lambda _module, _inputs, logits: sizes.append(len(logits)))
    x_adv = Square(queries=120)(model, x, y, ThreatModel("linf", EPS["linf"]), noise(16))
    hook.remove()
    is_right = predictions(model, x_adv) == y
    assert sizes[0] == 16
    assert max(sizes[1:]) <= 8
    # At most one pass per query; the cost of a pass on this machine decides how many proposals are tried in one.
    assert len(sizes) <= 121
    # Less those whose proposals change nothing.
    assert int(is_right.sum()) <= max(sizes[-10:]) < 8


@in_every_norm
def test_more_queries_and_restarts_never_leave_a_larger_margin(norm: Norm) -> None:
    model, x = conv_net(3, dtype=torch.float64).eval(), images(12, 3, dtype=torch.float64)
    y = predictions(model, x)
    threat = ThreatModel(norm, EPS[norm] / 10)

    def margins(attack: Square) -> Tensor:
        with torch.no_grad():
            logits = model(attack(model, x, y, threat, noise(12)))
        own = logits.gather(1, y[:, None]).squeeze(1)
        wrong = logits.scatter(1, y[:, None], -torch.inf).amax(1)
        # The size of a negative margin does not matter.
        return (own - wrong).clamp_min(0)

    found = [margins(Square(queries=queries, schedule="fixed")) for queries in (1, 5, 20, 150)]
    for shorter, longer in pairwise(found):
        assert (longer <= shorter).all()
    assert (found[-1] < found[0]).any()
    assert (margins(Square(queries=20, restarts=3, schedule="fixed")) <= found[2]).all()


@in_every_norm
@pytest.mark.slow
def test_survivors_do_not_depend_on_batches(norm: Norm) -> None:
    model, x = conv_net(3).eval(), images(8, 3)
    y = predictions(model, x)
    threat = ThreatModel(norm, EPS[norm] / 4)
    found = [
        standing(Attacked(attack=Square(queries=120), batch_size=size), model, x, y, threat, noise(8))
        for size in (1, 3, 8)
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert 0 < found[0].sum() < 8


# Several proposals in one pass.


def one_after_the_other(
    attack: Square, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise
) -> Tensor:
    """The search with one pass per query, and all images in it to the end."""

    def judged(points: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            logits = model(points)
        return margin(logits, y), logits.argmax(1) != y

    rng = rng.split("restart 0")
    best = first_points(x, threat, rng)
    margins, is_fooled = judged(best)
    for query in range(attack.queries):
        if query % 100 == 0:
            numbers = rng.uniform(torch.empty(len(x), 100, numbers_per_proposal(threat.norm, x.shape[1])))
        side = window_side(attack._share(query), x.shape[2], x.shape[3], threat.norm)
        points = Proposals(x, threat, numbers[:, query % 100, None], [side]).at(torch.arange(len(x)), 0, best)
        fresh, fools = judged(points)
        is_worse = ~is_fooled & (fools | (fresh > margins))
        best = torch.where(is_worse[:, None, None, None], points, best)
        margins, is_fooled = torch.where(is_worse, fresh, margins), is_fooled | fools
    return best


class Varied(Ahead):
    """Tries every number of proposals in turn, partly with images in step."""

    turn = 0

    def choose(self, images: int) -> int:
        self.turn += 1
        return 1 if self.turn % 40 < 20 else 1 + 5 * self.turn % 7


@in_every_norm
@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.full) for seed in (2, 3))])
def test_proposals_tried_together_change_nothing(norm: Norm, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit by bit, however many are tried together; one channel has proposals that change nothing."""
    channels = 1 + 2 * (seed % 2)
    torch.manual_seed(seed)
    model, x = conv_net(channels, dtype=torch.float64).eval(), images(12, channels, dtype=torch.float64)
    y, threat = predictions(model, x), ThreatModel(norm, EPS[norm] / 4)
    attack = Square(queries=230, schedule="fixed")
    expected = one_after_the_other(attack, model, x, y, threat, noise(12, seed))
    assert 0 < int((predictions(model, expected) == y).sum()) < 12
    for batch_size in (None, 20, 200):
        found = replace(attack, batch_size=batch_size)(model, x, y, threat, noise(12, seed))
        assert torch.equal(found, expected)
    monkeypatch.setattr("robustcli.attacks.square.Ahead", Varied)
    assert torch.equal(attack(model, x, y, threat, noise(12, seed)), expected)


def test_a_pass_holds_no_more_points_than_it_may() -> None:
    model, x = conv_net(3).eval(), images(6, 3)
    y, threat = predictions(model, x), ThreatModel("linf", EPS["linf"] / 10**4)
    for batch_size, largest in ((None, 6), (20, 20), (100, 100)):
        sizes: list[int] = []
        hook = model.register_forward_hook(lambda _module, _inputs, logits, sizes=sizes: sizes.append(len(logits)))
        Square(queries=400, batch_size=batch_size)(model, x, y, threat, noise(6))
        hook.remove()
        assert max(sizes) <= largest
        assert sum(sizes) <= 6 * (1 + MOST_FORWARDS * 400 + 16)
    assert Square(batch_size=250).limited(40, 250).batch_size == 40
    assert Square(batch_size=30).limited(40, 250).batch_size == 30
    assert Square().limited(40, 250).batch_size is None


def test_where_batch_norms_see_the_batch_it_holds_every_image_once() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64, track_running_stats=False), nn.Linear(64, 4)).train()
    x, sizes = images(10, 1), []
    hook = model.register_forward_hook(lambda _module, _inputs, logits: sizes.append(len(logits)))
    Square(queries=220, batch_size=1000)(
        model, x, predictions(model, x), ThreatModel("linf", Fraction(1, 1000)), noise(10)
    )
    hook.remove()
    assert len(sizes) == 2 + 220
    assert set(sizes) <= set(range(1, 11))
    assert sizes == sorted(sizes, reverse=True)


def played(seconds: Callable[[int], float], images: int, useful: float = 0.9, rounds: int = 300) -> list[int]:
    """The numbers chosen, if a round with a number of proposals of each image takes some seconds."""
    ahead, chosen = Ahead(limit=200), []
    for _ in range(rounds):
        number = ahead.choose(images)
        chosen.append(number)
        points = images * number
        ahead.learn(number, points, seconds(number), points, int(useful * points), accepted=0)
    return chosen


def test_the_number_tried_together_follows_the_times() -> None:
    """A pass that costs the same for up to 40 points, and as much more as it has points beyond them."""
    chosen = played(lambda number: max(5 * number, 40) * 1e-3, 5)
    assert max(chosen) <= 16
    assert chosen[-1] >= 8
    assert played(lambda number: 1e-3 * number, 80)[-1] == 1
    assert set(played(lambda number: 1e-3, 150)) == {1}
    assert Ahead(limit=4).choose(5) == 1


def test_several_are_tried_only_where_that_gains_more_than_a_little() -> None:
    for seconds, expected in ((2.1, 1), (1.97, 1), (1.8, 2)):
        chosen = played(lambda number, seconds=seconds: {1: 1.0, 2: seconds}.get(number, 99.0), 50, rounds=1000)
        assert chosen[-1] == expected
        assert sum(number != expected for number in chosen) <= 5 * 3 * 3, "a few rounds are timed, now and then"
    # One slow round, as another program makes it, decides nothing.
    slow = iter([50.0] + 999 * [1.0])
    assert played(lambda number: next(slow) if number == 1 else 2.0 * number, 50)[-1] == 1


def test_too_many_wasted_proposals_stop_trying_several() -> None:
    ahead = Ahead(limit=200)
    ahead.learn(16, 80, 1e-6, forwards=80, useful=20, accepted=5)
    assert ahead.choose(5) == 1


class Rounded(nn.Module):
    """A network behind rounding, which has no gradient."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network((64 * x).round() / 64)  # type: ignore[no-any-return]


def test_masked_gradients_do_not_hide_adversarial_examples() -> None:
    model, x = Rounded(conv_net(3).eval()).eval(), images(24, 3)
    y, threat = predictions(model, x), ThreatModel("linf", EPS["linf"])
    by_gradient = Pgd(steps=20, start="clean", keep="fooled")(model, x, y, threat, noise(24))
    assert (predictions(model, by_gradient) == y).all(), "the gradient is zero everywhere"
    by_search = Square(queries=500)(model, x, y, threat, noise(24))
    assert (predictions(model, by_search) == y).sum() <= 4


def test_a_search_from_given_points_only_improves_them() -> None:
    model, x, threat = conv_net(3).eval(), images(8, 3), ThreatModel("linf", Fraction(1, 100))
    y = predictions(model, x)
    points = Pgd(steps=3, loss="margin")(model, x, y, threat, noise(8))
    with torch.no_grad():
        before = last = margin(model(points), y)
        for queries in (1, 40):
            found = Square(queries=queries, p_init=0.1).improve(points, model, x, y, threat, noise(8, 1))
            assert threat.contains(found, x).all()
            after = margin(model(found), y)
            assert (after >= last - 1e-6).all()
            last = after
    assert (last > before + 1e-6).any()
