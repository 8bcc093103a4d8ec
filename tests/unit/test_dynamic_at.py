"""FOSC against its definition, attacks that stop by it, and training whose criterion falls."""

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_logits import ONE_HOT, Z_ADV, ce, gradients, outer
from small_steps import LINF, batch, counted, labeled, same, train
from torch import Tensor

from robustcli.attacks.active_set import no_early_exit
from robustcli.attacks.fosc_pgd import FoscPgd
from robustcli.attacks.pgd import Pgd
from robustcli.contracts.networks import conv_net, images, labels
from robustcli.data.targets import Labels
from robustcli.defenses import Batch
from robustcli.defenses.dynamic_at import RunningSelfWeighted, dynamic_at
from robustcli.defenses.min_max import MinMax
from robustcli.defenses.pgd_at import pgd_at
from robustcli.errors import RobustCliError
from robustcli.optimization.progress import Progress
from robustcli.registry.types import Norm
from robustcli.threat.noise import IndexedNoise, StreamNoise
from robustcli.threat.threat import ThreatModel

COUNT = 6
X = 0.3 + 0.4 * images(COUNT, dtype=torch.float64)
Y_IMAGES = labels(COUNT)
SLOPE = torch.randn(X.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
NORMS: list[Norm] = ["linf", "l2", "l1"]


def noise() -> IndexedNoise:
    return IndexedNoise(3, torch.arange(COUNT))


def threat(norm: Norm = "linf", eps: Fraction = Fraction(8, 255)) -> ThreatModel:
    return ThreatModel(norm, eps)


# The gap, which is FOSC.


def test_at_the_image_it_is_eps_times_the_sum_of_the_slopes() -> None:
    found = threat().gap(SLOPE, X, X)
    assert torch.allclose(found, 8 / 255 * SLOPE.abs().flatten(1).sum(1), rtol=1e-12, atol=0)


def test_at_the_corner_that_the_slope_points_to_it_is_0() -> None:
    corner = X + 8 / 255 * SLOPE.sign()
    assert threat().gap(SLOPE, corner, X).abs().max() < 1e-13
    other = X - 8 / 255 * SLOPE.sign()
    assert torch.allclose(threat().gap(SLOPE, other, X), 2 * threat().gap(SLOPE, X, X), rtol=1e-12, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_it_is_what_the_best_point_of_the_ball_gains(norm: Norm) -> None:
    ball = threat(norm, Fraction(1, 10))
    x_adv = ball.project(X + 0.05 * SLOPE, X)
    gap = ball.gap(SLOPE, x_adv, X)
    assert (gap >= -1e-12).all()
    flat = SLOPE.flatten(1)
    if norm == "l1":
        # All of the radius goes to the steepest pixel.
        best = torch.zeros_like(flat).scatter(1, flat.abs().argmax(1, keepdim=True), 1.0) * flat.sign()
        best = 0.1 * best.view_as(X)
    else:
        best = ball.ascent(SLOPE, X, ball.radius)
    gain = ((X + best - x_adv) * SLOPE).flatten(1).sum(1)
    assert torch.allclose(gap, gain, rtol=1e-10, atol=1e-12)


def test_it_grows_with_the_loss_and_not_with_the_batch() -> None:
    x_adv = X + 0.01 * SLOPE.sign()
    assert torch.allclose(threat().gap(7 * SLOPE, x_adv, X), 7 * threat().gap(SLOPE, x_adv, X), rtol=1e-12, atol=0)
    model = conv_net(dtype=torch.float64).eval()
    attack = FoscPgd(steps=1, start="clean")
    alone = [
        attack.search(model, X[i : i + 1], Y_IMAGES[i : i + 1], threat(), noise())[1]["fosc"].item()
        for i in range(COUNT)
    ]
    together = attack.search(model, X, Y_IMAGES, threat(), noise())[1]["fosc"].item()
    assert together == pytest.approx(sum(alone) / COUNT)


# The attack that stops by FOSC.


def plain_loop(criterion: float, center: str, steps: int = 5) -> tuple[Tensor, list[int]]:
    """A plain loop over images."""
    model, ball = conv_net(dtype=torch.float64).eval(), threat()
    starts = ball.sample(X, noise())
    ends, taken = [], []
    for x, y, start in zip(X.split(1), Y_IMAGES.split(1), starts.split(1), strict=True):
        x_adv, count = start, 0
        while count < steps:
            point = x_adv.clone().requires_grad_()
            (slope,) = torch.autograd.grad(F.cross_entropy(model(point), y), point)
            middle = x if center == "clean" else start
            fosc = 8 / 255 * slope.abs().sum() - ((x_adv - middle) * slope).sum()
            if count and fosc <= criterion:
                break
            x_adv = torch.clamp(x_adv + 2 / 255 * slope.sign(), x - 8 / 255, x + 8 / 255).clamp(0, 1)
            count += 1
        ends.append(x_adv)
        taken.append(count)
    return torch.cat(ends), taken


@pytest.mark.parametrize("center", ["clean", "start"])
@pytest.mark.parametrize("criterion", [0.0, 0.008, 0.011, 0.014, 100.0])
def test_images_stop_as_in_a_plain_loop(criterion: float, center: Any) -> None:
    attack = FoscPgd(steps=5, criterion=criterion, center=center)
    x_adv, report = attack.search(conv_net(dtype=torch.float64).eval(), X, Y_IMAGES, threat(), noise())
    expected, taken = plain_loop(criterion, center)
    assert torch.allclose(x_adv, expected, rtol=0, atol=1e-12)
    assert report["attack_steps"].item() == pytest.approx(sum(taken) / COUNT)


def test_some_criterion_stops_some_images_and_not_others() -> None:
    """The comparison above needs images that stop at different steps."""
    assert any(len(set(plain_loop(criterion, "clean")[1])) > 1 for criterion in (0.008, 0.011, 0.014))


@pytest.mark.parametrize("norm", NORMS)
def test_without_a_criterion_it_is_pgd(norm: Norm) -> None:
    model, x = conv_net().eval(), images(COUNT)
    found = FoscPgd(steps=4, criterion=0.0, start="clean")(model, x, Y_IMAGES, threat(norm), noise())
    assert torch.equal(found, Pgd(steps=4, start="clean")(model, x, Y_IMAGES, threat(norm), noise()))


def test_with_a_criterion_out_of_reach_it_takes_one_step() -> None:
    model, x = conv_net().eval(), images(COUNT)
    for steps in (1, 6):
        attack = FoscPgd(steps=steps, criterion=1e9, start="clean")
        x_adv, report = attack.search(model, x, Y_IMAGES, threat(), noise())
        assert torch.equal(x_adv, Pgd(steps=1, start="clean")(model, x, Y_IMAGES, threat(), noise()))
        assert report["attack_steps"] == 1


# Training.


def test_the_criterion_falls_to_0_in_a_straight_line() -> None:
    defense = dynamic_at(max_criterion=0.5, until=100)
    curriculum = defense.curriculum.start(conv_net())

    def criterion(epoch: float) -> float:
        attack: Any = curriculum.attack(defense.attack, Progress(int(epoch * 4), 4, 120))
        return float(attack.criterion)

    assert [criterion(epoch) for epoch in (0, 0.75, 1, 50, 99)] == pytest.approx([0.5, 0.5, 0.495, 0.25, 0.005])
    assert [criterion(epoch) for epoch in (100, 119)] == [0, 0]


def test_an_attack_without_a_criterion_is_refused() -> None:
    with pytest.raises(RobustCliError, match="its criterion changes during training, and Pgd has none"):
        train(replace(dynamic_at(), attack=Pgd()), conv_net(), updates=1)


def test_a_criterion_of_0_is_pgd_at() -> None:
    assert same(train(dynamic_at(max_criterion=0.0, steps=3), conv_net()), train(pgd_at(steps=3), conv_net()))


def test_the_weighted_loss_has_the_gradient_of_half_the_square() -> None:
    losses, weighted = ce(Z_ADV.numpy(), ONE_HOT), RunningSelfWeighted()
    weighted.begin(Batch(Z_ADV, Z_ADV, Z_ADV), Progress(4, 4, 10))
    assert outer(weighted).item() == pytest.approx((losses**2).mean())

    def half_square(model: Any, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch.x_adv), batch.y, reduction="none").square().mean() / 2

    found, expected = gradients(weighted)[1], gradients(half_square)[1]
    assert found is not None
    assert expected is not None
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-15)


def test_the_weighting_begins_with_the_second_epoch() -> None:
    weighted, plain = dynamic_at(self_weighted=True, steps=2), dynamic_at(steps=2)
    # Three updates are one epoch of these tests.
    assert same(train(weighted, conv_net(), updates=3), train(plain, conv_net(), updates=3))
    assert not same(train(weighted, conv_net(), updates=4), train(plain, conv_net(), updates=4))


@pytest.mark.parametrize("self_weighted", [False, True])
def test_a_step_costs_k_attack_steps_and_one_branch(self_weighted: bool) -> None:
    """The gradient for FOSC is also that of the step; no image leaves the batch."""
    model = conv_net().train()
    step = dynamic_at(steps=5, self_weighted=self_weighted).start(
        model, torch.optim.SGD(model.parameters(), lr=0.1), StreamNoise.on(torch.device("cpu"))
    )
    with no_early_exit(), counted(model) as passes:
        step(*labeled(), LINF, Progress(4, 4, 10))
    assert (passes.forwards, passes.crafting, passes.input, passes.weight) == (6, 5, 5, 1)


def test_fosc_and_the_steps_taken_are_recorded() -> None:
    model = conv_net().train()
    defense: MinMax = dynamic_at()
    step = defense.start(model, torch.optim.SGD(model.parameters(), lr=0.1), noise())
    x, y = batch()
    metrics = step(x[:COUNT], Labels.of(y[:COUNT]), LINF, Progress(0, 4, 10))
    assert set(metrics) == {"loss", "fosc", "attack_steps"}
