"""SCORE against its formula, its limits and its cost."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_logits import (
    ONE_HOT,
    SHARES,
    Z_ADV,
    Array,
    Z,
    gradients,
    has_the_gradient_of_finite_differences,
    outer,
    softmax,
)
from small_steps import counted, tracked, train

from robustcli.attacks.losses import LOSSES
from robustcli.contracts.networks import conv_net
from robustcli.defenses.min_max import MinMax
from robustcli.defenses.score import ScoreLoss, score
from robustcli.optimization.weights.awp import Awp


def loss_of(beta: float = 4.0, clip_robust: float = 0.0, clip_total: float = 0.0) -> ScoreLoss:
    return ScoreLoss(beta=beta, clip_robust=clip_robust, clip_total=clip_total)


@pytest.mark.parametrize("beta", [0.0, 4.0])
@pytest.mark.parametrize(("clip_robust", "clip_total"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.5), (0.05, 0.2)])
@pytest.mark.parametrize("shares", [ONE_HOT, SHARES.numpy()], ids=["labels", "shares"])
def test_loss_is_its_formula(beta: float, clip_robust: float, clip_total: float, shares: Array) -> None:
    p, p_adv = softmax(Z.numpy()), softmax(Z_ADV.numpy())
    robust = np.maximum(((p_adv - p) ** 2).sum(1) - clip_robust, 0)
    expected = np.maximum(((p - shares) ** 2).sum(1) + beta * robust - clip_total, 0).mean()
    found = outer(loss_of(beta, clip_robust, clip_total), y=torch.from_numpy(shares))
    assert found.item() == pytest.approx(expected)


@pytest.mark.parametrize("loss", [loss_of(), loss_of(6.0, 0.01, 0.05)])
def test_nothing_is_held_fixed(loss: ScoreLoss) -> None:
    assert has_the_gradient_of_finite_differences(loss)


def test_an_image_below_the_clip_has_no_gradient() -> None:
    for gradient in gradients(loss_of(4.0, clip_total=100.0)):
        assert gradient is not None
        assert not gradient.any()
    _, adversarial = gradients(loss_of(4.0, clip_robust=100.0))
    assert adversarial is not None
    assert not adversarial.any()


def test_the_clip_stated_as_a_probability_is_the_one_of_the_docstring() -> None:
    p = torch.full((1, 10), 0.3 / 9, dtype=torch.float64)
    p[0, 0] = 0.7
    z = p.log()
    assert outer(loss_of(0.0), z, z, torch.zeros(1, dtype=torch.int64)).item() == pytest.approx(0.3**2 * 10 / 9)


def test_the_attack_raises_the_distance_that_the_loss_lowers() -> None:
    squared = LOSSES["squared"]
    expected = squared.score(Z_ADV, squared.refer(torch.nn.Identity(), Z, Z)).mean()
    robust = outer(loss_of(1.0)) - outer(loss_of(0.0))
    assert robust.item() == pytest.approx(expected.item())


@pytest.mark.parametrize(
    ("defense", "forwards", "inputs", "weights", "advance"),
    [
        (score(steps=5), 8, 5, 2, 2),
        (score(steps=5, attack_bn="eval", start="gaussian"), 8, 5, 2, 2),
        (score(steps=5, beta=0), 7, 5, 1, 1),
        (replace(score(steps=5), weights=Awp()), 10, 5, 4, 2),
    ],
    ids=["score", "without generated data", "beta 0", "with awp"],
)
def test_a_step_costs_what_trades_costs(
    defense: MinMax, forwards: int, inputs: int, weights: int, advance: int
) -> None:
    model = conv_net()
    before = tracked(model)
    with counted(model) as passes:
        train(defense, model, updates=1)
    assert (passes.forwards, passes.crafting, passes.input, passes.weight) == (forwards, 6, inputs, weights)
    assert [now - then for now, then in zip(tracked(model), before, strict=True)] == [advance] * 2
