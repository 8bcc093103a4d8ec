"""SAM against its algorithm written out, and the limits in which it is the base method."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_steps import LINF, batch, counted, labeled, progress, same, tracked, train

from robustcli.contracts.networks import conv_net
from robustcli.defenses.mart import mart
from robustcli.defenses.natural import natural
from robustcli.defenses.pgd_at import pgd_at
from robustcli.defenses.trades import trades
from robustcli.optimization.weights.sam import Sam
from robustcli.threat.noise import StreamNoise

BASES: dict[str, Any] = {
    "natural": natural(),
    "pgd_at": pgd_at(steps=2),
    "trades": trades(steps=2),
    "mart": mart(steps=2),
}


@pytest.mark.parametrize("base", list(BASES))
def test_with_rho_0_it_is_the_base_method(base: str) -> None:
    assert same(train(replace(BASES[base], weights=Sam(rho=0)), conv_net()), train(BASES[base], conv_net()))


@pytest.mark.parametrize("base", list(BASES))
def test_it_goes_with_any_loss(base: str) -> None:
    model = conv_net()
    assert not same(train(replace(BASES[base], weights=Sam()), model), train(BASES[base], conv_net()))
    # The search for v moves no statistics.
    plain = conv_net()
    train(BASES[base], plain)
    assert tracked(model) == tracked(plain)


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_updates_are_those_of_the_algorithm(weight_decay: float) -> None:
    """Decay acts at w: were it to act at w + v, 0.5 of it would show."""
    rho, lr, momentum = 0.3, 0.1, 0.9
    found = train(
        replace(natural(), weights=Sam(rho=rho)),
        conv_net(dtype=torch.float64),
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
    )
    model = conv_net(dtype=torch.float64).train()
    weights = list(model.parameters())
    speed = [torch.zeros_like(w) for w in weights]
    for update in range(3):
        x, y = batch(update, torch.float64)
        buffers = [buffer.clone() for buffer in model.buffers()]
        first = torch.autograd.grad(F.cross_entropy(model(x), y), weights)
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
        length = sum(g.square().sum() for g in first).sqrt()  # type: ignore[union-attr]
        with torch.no_grad():
            for w, g in zip(weights, first, strict=True):
                w += rho * g / length
        second = torch.autograd.grad(F.cross_entropy(model(x), y), weights)
        with torch.no_grad():
            for number, (w, g, h) in enumerate(zip(weights, first, second, strict=True)):
                w -= rho * g / length
                speed[number] = momentum * speed[number] + h + weight_decay * w
                w -= lr * speed[number]
    for one, other in zip(found, model.state_dict().values(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_the_perturbation_has_length_rho_over_all_parameters() -> None:
    model = conv_net(dtype=torch.float64).train()
    x, y = batch(dtype=torch.float64)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with Sam(rho=0.25).around(model, lambda: F.cross_entropy(model(x), y), progress()):
        moves = [now.detach() - then for now, then in zip(model.parameters(), before, strict=True)]
    assert float(sum(move.square().sum() for move in moves)) ** 0.5 == pytest.approx(0.25)
    assert all(move.abs().max() > 0 for move in moves)


def test_a_flat_loss_moves_nothing() -> None:
    model = conv_net().train()
    x, _ = batch()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with Sam().around(model, lambda: 0 * model(x).sum(), progress()):
        assert all(torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True))


def test_it_costs_the_loss_once_more() -> None:
    model = conv_net().train()
    step = replace(pgd_at(steps=5), weights=Sam()).start(
        model, torch.optim.SGD(model.parameters(), lr=0.1), StreamNoise.on(torch.device("cpu"))
    )
    with counted(model) as passes:
        step(*labeled(), LINF, progress())
    assert (passes.forwards, passes.input, passes.weight) == (7, 5, 2)
