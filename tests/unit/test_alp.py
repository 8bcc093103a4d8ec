"""Adversarial logit pairing against its formula, its limits and its cost."""

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from small_logits import ONE_HOT, SHARES, Z_ADV, Array, Z, ce, gradients, has_the_gradient_of_finite_differences, outer
from small_steps import counted, tracked, train

from robustcli.contracts.networks import conv_net
from robustcli.defenses.alp import AlpLoss, alp
from robustcli.optimization.weights.awp import Awp


def loss_of(
    weight: float = 0.5,
    pairing: Literal["squared", "norm"] = "squared",
    cross_entropies: Literal["mean", "sum"] = "mean",
) -> AlpLoss:
    return AlpLoss(pairing_weight=weight, pairing=pairing, cross_entropies=cross_entropies)


def distance() -> Array:
    lengths: Array = np.sqrt(((Z.numpy() - Z_ADV.numpy()) ** 2).sum(1))
    return lengths


@pytest.mark.parametrize("weight", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("shares", [ONE_HOT, SHARES.numpy()], ids=["labels", "shares"])
def test_loss_is_its_formula(weight: float, shares: Array) -> None:
    both = ce(Z.numpy(), shares).mean() + ce(Z_ADV.numpy(), shares).mean()
    y = torch.from_numpy(shares)
    squared = weight * (distance() ** 2).mean()
    assert outer(loss_of(weight), y=y).item() == pytest.approx(both / 2 + squared)
    assert outer(loss_of(weight, cross_entropies="sum"), y=y).item() == pytest.approx(both + squared)
    norm = weight * distance().mean()
    assert outer(loss_of(weight, "norm"), y=y).item() == pytest.approx(both / 2 + norm)


@pytest.mark.parametrize("pairing", ["squared", "norm"])
def test_nothing_is_held_fixed(pairing: Literal["squared", "norm"]) -> None:
    assert has_the_gradient_of_finite_differences(loss_of(2.0, pairing))


def test_the_pairing_pulls_both_logits_alike() -> None:
    none, some = gradients(loss_of(0.0)), gradients(loss_of(0.5))
    assert none[0] is not None
    assert none[1] is not None
    assert some[0] is not None
    assert some[1] is not None
    assert torch.allclose(some[0] - none[0], (Z - Z_ADV) / len(Z), rtol=0, atol=1e-12)
    assert torch.allclose(some[1] - none[1], (Z_ADV - Z) / len(Z), rtol=0, atol=1e-12)


@pytest.mark.parametrize("pairing", ["squared", "norm"])
def test_equal_logits_are_at_rest(pairing: Literal["squared", "norm"]) -> None:
    z, z_adv = Z.clone().requires_grad_(), Z.clone().requires_grad_()
    loss = outer(loss_of(0.5, pairing), z, z_adv)
    assert loss.item() == pytest.approx(ce(Z.numpy(), ONE_HOT).mean())
    one, other = torch.autograd.grad(loss, (z, z_adv))
    assert torch.equal(one, other)
    assert torch.isfinite(one).all()


@pytest.mark.parametrize("with_awp", [False, True])
def test_a_step_costs_k_attack_steps_and_two_branches(with_awp: bool) -> None:
    model, defense = conv_net(), alp(steps=5)
    before = tracked(model)
    with counted(model) as passes:
        train(replace(defense, weights=Awp()) if with_awp else defense, model, updates=1)
    branches = 4 if with_awp else 2
    assert (passes.forwards, passes.crafting, passes.input, passes.weight) == (5 + branches, 5, 5, branches)
    assert [now - then for now, then in zip(tracked(model), before, strict=True)] == [2] * 2
