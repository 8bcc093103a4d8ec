"""MART against its formula, its limits and its cost."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_logits import (
    ONE_HOT,
    SHARES,
    Z_ADV,
    Array,
    Y,
    Z,
    ce,
    gradients,
    has_the_gradient_of_finite_differences,
    kl,
    outer,
    softmax,
)
from small_steps import counted, same, tracked, train

from robustcli.contracts.networks import conv_net
from robustcli.defenses.mart import MartLoss, mart
from robustcli.defenses.min_max import MinMax
from robustcli.optimization.weights.awp import Awp

CERTAIN = 60.0 * torch.eye(5, dtype=torch.float64)


def boosted(shares: Array) -> Array:
    p_adv = softmax(Z_ADV.numpy())
    others = np.where(np.eye(5)[shares.argmax(1)] == 1, -np.inf, p_adv)
    values: Array = ce(Z_ADV.numpy(), shares) - np.log(1.0001 - others.max(1) + 1e-12)
    return values


@pytest.mark.parametrize("beta", [0.0, 1.0, 6.0])
def test_loss_is_its_formula(beta: float) -> None:
    p = softmax(Z.numpy())
    weight = 1.0000001 - p[np.arange(6), Y.numpy()]
    expected = (boosted(ONE_HOT) + beta * kl(Z.numpy(), Z_ADV.numpy()) * weight).mean()
    assert outer(MartLoss(beta=beta)).item() == pytest.approx(expected, rel=1e-9)


def test_with_class_shares_the_weight_is_what_the_model_does_not_share() -> None:
    shares = SHARES.numpy()
    weight = 1.0000001 - (shares * softmax(Z.numpy())).sum(1)
    expected = (boosted(shares) + 6 * kl(Z.numpy(), Z_ADV.numpy()) * weight).mean()
    assert outer(MartLoss(beta=6.0), y=SHARES).item() == pytest.approx(expected, rel=1e-9)


def test_the_rival_is_the_likeliest_other_class_also_where_the_label_wins() -> None:
    z_adv = torch.tensor([[3.0, 1.0, 0.0]], dtype=torch.float64)
    p = softmax(z_adv.numpy())[0]
    for label, rival in ((0, 1), (1, 0), (2, 0)):
        loss = outer(MartLoss(beta=0.0), z_adv, z_adv, torch.tensor([label]))
        assert loss.item() == pytest.approx(-np.log(p[label]) - np.log(1.0001 - p[rival]), rel=1e-9)


@pytest.mark.parametrize("beta", [0.0, 5.0])
def test_nothing_is_held_fixed(beta: float) -> None:
    assert has_the_gradient_of_finite_differences(MartLoss(beta=beta))
    clean, adversarial = gradients(MartLoss(beta=beta))
    assert adversarial is not None
    # Without the divergence the clean image needs no forward.
    assert (clean is None) == (beta == 0)


def test_an_image_that_is_certainly_right_has_no_weight_and_one_that_is_wrong_all_of_it() -> None:
    z_adv = torch.zeros(5, 5, dtype=torch.float64)
    base = outer(MartLoss(beta=0.0), CERTAIN, z_adv, torch.arange(5))
    right = outer(MartLoss(beta=6.0), CERTAIN, z_adv, torch.arange(5)) - base
    wrong = outer(MartLoss(beta=6.0), CERTAIN, z_adv, (torch.arange(5) + 1) % 5)
    wrong = wrong - outer(MartLoss(beta=0.0), CERTAIN, z_adv, (torch.arange(5) + 1) % 5)
    assert right.item() == pytest.approx(0, abs=1e-5)
    assert wrong.item() == pytest.approx(6 * np.log(5), rel=1e-5)


def test_a_certain_model_has_a_finite_loss_and_gradient() -> None:
    z, z_adv = (100 * CERTAIN).clone().requires_grad_(), (-100 * CERTAIN).clone().requires_grad_()
    loss = outer(MartLoss(beta=6.0), z, z_adv, torch.arange(5))
    for value in (loss, *torch.autograd.grad(loss, (z, z_adv))):
        assert torch.isfinite(value).all()


@pytest.mark.parametrize(
    ("defense", "forwards", "inputs", "weights", "advance"),
    [
        (mart(steps=5), 7, 5, 2, 2),
        (mart(steps=5, beta=0), 6, 5, 1, 1),
        (replace(mart(steps=5), weights=Awp()), 9, 5, 4, 2),
    ],
    ids=["mart", "beta 0", "with awp"],
)
def test_a_step_costs_k_attack_steps_and_two_branches(
    defense: MinMax, forwards: int, inputs: int, weights: int, advance: int
) -> None:
    model = conv_net()
    before = tracked(model)
    with counted(model) as passes:
        train(defense, model, updates=1)
    assert (passes.forwards, passes.input, passes.weight) == (forwards, inputs, weights)
    assert passes.crafting == 5
    assert [now - then for now, then in zip(tracked(model), before, strict=True)] == [advance] * 2


def test_awp_that_is_off_is_mart() -> None:
    off = replace(mart(steps=2), weights=Awp(gamma=0))
    assert same(train(off, conv_net()), train(mart(steps=2), conv_net()))
