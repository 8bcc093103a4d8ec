"""Mixed training against its formula, its limits and its cost."""

import pytest
import torch
from small_logits import ONE_HOT, SHARES, Z_ADV, Array, Z, ce, has_the_gradient_of_finite_differences, outer
from small_steps import counted, same, tracked, train

from robustcli.contracts.networks import conv_net
from robustcli.defenses.alp import alp
from robustcli.defenses.half_half import MixedCrossEntropy, half_half
from robustcli.defenses.natural import natural
from robustcli.defenses.pgd_at import pgd_at


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("shares", [ONE_HOT, SHARES.numpy()], ids=["labels", "shares"])
def test_loss_is_its_formula(share: float, shares: Array) -> None:
    expected = share * ce(Z_ADV.numpy(), shares).mean() + (1 - share) * ce(Z.numpy(), shares).mean()
    assert outer(MixedCrossEntropy(share=share), y=torch.from_numpy(shares)).item() == pytest.approx(expected)


def test_nothing_is_held_fixed() -> None:
    assert has_the_gradient_of_finite_differences(MixedCrossEntropy(share=0.3))


def test_all_adversarial_is_pgd_at() -> None:
    assert same(train(half_half(share=1.0, steps=3), conv_net()), train(pgd_at(steps=3), conv_net()))


def test_all_clean_is_natural_training() -> None:
    assert same(train(half_half(share=0.0, steps=3), conv_net()), train(natural(), conv_net()))


def test_half_and_half_is_logit_pairing_without_the_pairing() -> None:
    found = train(half_half(share=0.5, steps=3), conv_net(dtype=torch.float64))
    expected = train(alp(pairing_weight=0.0, steps=3), conv_net(dtype=torch.float64))
    assert all(torch.allclose(a.double(), b.double(), rtol=0, atol=1e-12) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(("share", "branches"), [(0.0, 1), (0.5, 2), (1.0, 1)])
def test_a_step_costs_k_attack_steps_and_the_branches_that_count(share: float, branches: int) -> None:
    model = conv_net()
    before = tracked(model)
    with counted(model) as passes:
        train(half_half(share=share, steps=5), model, updates=1)
    assert (passes.forwards, passes.crafting, passes.input, passes.weight) == (5 + branches, 5, 5, branches)
    assert [now - then for now, then in zip(tracked(model), before, strict=True)] == [branches] * 2
