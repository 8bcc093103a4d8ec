"""FAB finds known nearest boundaries with the minimal number of passes."""

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from judging import noise, predictions
from test_hyperplane import shortest
from torch import Tensor, nn

from robustcli.attacks.fab import Fab, fab_t
from robustcli.contracts.networks import conv_net, images, labels, linear_net
from robustcli.evaluation.passes import count_passes
from robustcli.registry.types import Norm
from robustcli.threat.threat import ThreatModel

NORMS: list[Norm] = ["linf", "l2", "l1"]
DUAL = {"linf": 1.0, "l2": 2.0, "l1": math.inf}
# Wider than the box in every norm: the nearest point is looked for, not one inside.
WIDE = {"linf": Fraction(1), "l2": Fraction(100), "l1": Fraction(10000)}

in_every_norm = pytest.mark.parametrize("norm", NORMS)


def linear(side: int = 8) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model of five classes in double precision whose boundaries all meet in the gray image."""
    model = linear_net(side * side, 5, seed=4, dtype=torch.float64)
    weight: Tensor = model[1].weight.detach()  # type: ignore[index]
    bias: Tensor = model[1].bias.detach()  # type: ignore[index]
    bias.copy_(-weight.sum(1) / 2)
    return model, weight, bias


@in_every_norm
@pytest.mark.parametrize("attack", [Fab(keep="nearest"), fab_t(keep="nearest")], ids=["fab", "fab_t"])
def test_distance_to_a_linear_boundary_is_exact(norm: Norm, attack: Fab) -> None:
    """Far from the box: the smallest gap of two logits over the dual norm of their weights' difference."""
    model, weight, _ = linear()
    x = 0.45 + 0.1 * images(20, dtype=torch.float64)
    y = predictions(model, x)
    with torch.no_grad():
        logits = model(x)
    gaps = logits.gather(1, y[:, None]) - logits
    radii = gaps / torch.linalg.vector_norm(weight[y][:, None] - weight[None], ord=DUAL[norm], dim=2)
    exact = radii.scatter(1, y[:, None], torch.inf).amin(1)
    threat = ThreatModel(norm, WIDE[norm])
    x_adv = attack(model, x, y, threat, noise(20))
    assert (predictions(model, x_adv) != y).all()
    found = threat.size(x_adv - x)
    assert (found >= exact * (1 - 1e-9)).all()
    # Steps end beyond the boundary, by a little.
    assert (found <= exact * 1.01).all()
    searched = Fab(targets=attack.targets, keep="nearest", final_search=3)(model, x, y, threat, noise(20))
    assert (predictions(model, searched) != y).all()
    assert (threat.size(searched - x) <= exact * (1 + 1e-5)).all()
    assert (threat.size(searched - x) >= exact * (1 - 1e-9)).all()


@in_every_norm
def test_distance_is_exact_where_the_box_is_in_the_way(norm: Norm) -> None:
    """Some pixels can move in one direction only; the nearest of four planes agrees with a solver's."""
    model, weight, bias = linear(4)
    x = images(20, 1, 4, dtype=torch.float64)
    y = predictions(model, x)
    threat = ThreatModel(norm, WIDE[norm])
    x_adv = Fab(targets=4, keep="nearest", final_search=3)(model, x, y, threat, noise(20))
    found = threat.size(x_adv - x)
    blocked = 0
    for i in range(len(x)):
        pixels, own = x[i].flatten(), int(y[i])
        lengths = {}
        for rival in set(range(5)) - {own}:
            normal = weight[rival] - weight[own]
            gap = float(normal @ pixels + bias[rival] - bias[own])
            length = shortest(pixels.numpy(), gap, normal.numpy(), norm)
            if length is not None:
                lengths[rival] = length
                blocked += length > abs(gap) / float(torch.linalg.vector_norm(normal, ord=DUAL[norm])) * (1 + 1e-6)
        if lengths:
            assert int(predictions(model, x_adv[i : i + 1])) != own
            assert found[i].item() == pytest.approx(min(lengths.values()), rel=0.005)
        else:
            assert torch.equal(x_adv[i], x[i])
    assert blocked > 10, "the box was hardly ever in the way"


@in_every_norm
@pytest.mark.slow
def test_broken_is_what_has_a_wrong_point_inside(norm: Norm) -> None:
    """The radius decides only which images are broken; survivors are returned unchanged."""
    model = conv_net(3, dtype=torch.float64).eval()
    x = images(12, 3, dtype=torch.float64)
    y = predictions(model, x)
    threat = ThreatModel(norm, WIDE[norm])
    nearest = fab_t(steps=20, keep="nearest")(model, x, y, threat, noise(12))
    sizes = threat.size(nearest - x)
    middle = Fraction(float(sizes.median()) * 1.0001)
    inside = ThreatModel(norm, middle)
    for attack in (fab_t(steps=20), fab_t(steps=20, keep="nearest")):
        x_adv = attack(model, x, y, inside, noise(12))
        is_broken = sizes <= inside.radius
        assert torch.equal(predictions(model, x_adv) != y, is_broken)
        assert torch.equal(x_adv[~is_broken], x[~is_broken])
        assert (inside.size(x_adv - x) <= inside.radius).all()
        assert (inside.size(x_adv - x)[is_broken] >= sizes[is_broken]).all()
        assert is_broken.sum() == 6


def test_what_is_wrong_already_is_left_as_it_is() -> None:
    model, x = conv_net(3).eval(), images(24, 3)
    y = labels(24)
    is_wrong = predictions(model, x) != y
    assert is_wrong.any()
    x_adv = fab_t()(model, x, y, ThreatModel("l2", Fraction(100)), noise(24))
    assert torch.equal(x_adv[is_wrong], x[is_wrong])


@pytest.mark.parametrize(
    ("attack", "forwards", "gradients"),
    [
        # The clean logits, then two forwards and one gradient for each step and target.
        (Fab(steps=7, targets=3), 1 + 3 * 14, 3 * 7),
        # One forward for all nine gradients of a step.
        (Fab(steps=7), 1 + 14, 9 * 7),
        (Fab(steps=7, restarts=3), 1 + 3 * 14, 3 * 9 * 7),
        (Fab(steps=7, targets=20), 1 + 9 * 14, 9 * 7),
        # Both ends of the line, and one forward for each step on it.
        (Fab(steps=7, targets=3, final_search=2), 1 + 3 * 18, 3 * 7),
    ],
)
def test_survivors_cost_these_passes(attack: Fab, forwards: int, gradients: int) -> None:
    model, x = conv_net(3).eval(), images(8, 3)
    y = predictions(model, x)
    with count_passes(model) as passes:
        x_adv = attack(model, x, y, ThreatModel("linf", Fraction(1, 10**6)), noise(8))
    assert torch.equal(x_adv, x)
    assert (passes.forwards, passes.gradients) == (8 * forwards, 8 * gradients)


def test_an_image_leaves_the_batch_once_it_is_broken() -> None:
    model, x = conv_net(3).eval(), images(8, 3)
    y = predictions(model, x)
    with count_passes(model) as passes:
        x_adv = fab_t()(model, x, y, ThreatModel("linf", Fraction(1)), noise(8))
    assert (predictions(model, x_adv) != y).all()
    assert passes.gradients < 8 * 5


def test_no_gradient_comes_to_the_weights() -> None:
    model, x = conv_net(3).eval(), images(8, 3)
    asked: list[Any] = []
    for parameter in model.parameters():
        parameter.register_hook(asked.append)  # type: ignore[no-untyped-call]
    for attack in (fab_t(steps=2), Fab(steps=2)):
        attack(model, x, predictions(model, x), ThreatModel("l2", Fraction(1, 1000)), noise(8))
    assert asked == []
    assert all(parameter.grad is None for parameter in model.parameters())


@in_every_norm
def test_restarts_never_end_farther_away(norm: Norm) -> None:
    model, x = conv_net(3, dtype=torch.float64).eval(), images(24, 3, dtype=torch.float64)
    y = predictions(model, x)
    threat = ThreatModel(norm, WIDE[norm])
    sizes = []
    for restarts in (1, 2, 4):
        x_adv = Fab(steps=2, restarts=restarts, keep="nearest")(model, x, y, threat, noise(24))
        is_broken = predictions(model, x_adv) != y
        sizes.append(torch.where(is_broken, threat.size(x_adv - x), torch.inf))
    assert (sizes[1] <= sizes[0]).all()
    assert (sizes[2] <= sizes[1]).all()
    assert (sizes[2] < sizes[0]).any()


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_few_classes_are_enough(classes: int) -> None:
    model, x = conv_net(3, classes).eval(), images(12, 3)
    y = predictions(model, x)
    for attack in (fab_t(), Fab()):
        x_adv = attack(model, x, y, ThreatModel("l2", Fraction(20)), noise(12))
        assert (predictions(model, x_adv) != y).all()


def test_a_flat_model_is_not_broken_and_gives_no_nan() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    with torch.no_grad():
        model[1].weight.zero_()
    x = images(6, 3)
    y = predictions(model, x)
    for norm in NORMS:
        for attack in (fab_t(steps=3), Fab(steps=3, restarts=2)):
            assert torch.equal(attack(model, x, y, ThreatModel(norm, Fraction(1)), noise(6)), x)


@in_every_norm
@pytest.mark.parametrize("keep", ["fooled", "nearest"])
@pytest.mark.slow
def test_targets_side_by_side_end_as_one_after_the_other(norm: Norm, keep: Any) -> None:
    model, x = conv_net(3).eval(), images(8, 3)
    y = predictions(model, x)
    threat = ThreatModel(norm, {"linf": Fraction(1, 200), "l2": Fraction(1, 20), "l1": Fraction(1, 4)}[norm])
    found, calls = [], []
    for batch_size in (None, 20, 100):
        sizes: list[int] = []
        hook = model.register_forward_hook(lambda _module, inputs, _output, sizes=sizes: sizes.append(len(inputs[0])))
        x_adv = fab_t(steps=15, keep=keep, batch_size=batch_size)(model, x, y, threat, noise(8))
        hook.remove()
        found.append(predictions(model, x_adv) == y)
        calls.append(len(sizes))
        assert max(sizes) <= (batch_size or 8)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert 0 < int(found[0].sum()) < 8
    assert calls[0] > calls[1] > calls[2]
