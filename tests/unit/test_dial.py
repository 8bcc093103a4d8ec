"""DIAL: reversed gradient, schedule, limits, cost and the domain head."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_steps import LINF, batch, counted, labeled, same, tracked, train
from torch import Tensor, nn

from robustcli.attacks.losses import kl_divergence
from robustcli.contracts.networks import conv_net
from robustcli.defenses import Batch
from robustcli.defenses.dial import DialLoss, Reversal, dial, domain_head
from robustcli.defenses.trades import trades
from robustcli.optimization.progress import Progress
from robustcli.optimization.weights.awp import Awp
from robustcli.threat.noise import StreamNoise


def stream(seed: int = 0) -> StreamNoise:
    return StreamNoise.on(torch.device("cpu")).reseed(seed, "test")


def started(**settings: Any) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    """A model, its optimizer and the running loss."""
    model = conv_net(dtype=torch.float64).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    loss = dial(**settings).loss
    assert isinstance(loss, DialLoss)
    return model, optimizer, loss.start(model, optimizer, stream())


def a_batch() -> Batch:
    x, y = batch(dtype=torch.float64)
    return Batch(x, y, (x + 0.03 * torch.sign(x - 0.5)).clamp(0, 1))


# The reversal.


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_reversal_is_the_identity_with_another_gradient(strength: float) -> None:
    features = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    out = Reversal.apply(features, strength)
    assert torch.equal(out, features)
    slope = torch.arange(12.0, dtype=torch.float64).view(4, 3)
    (grad,) = torch.autograd.grad(out, features, slope)
    assert torch.equal(grad, -strength * slope)


def test_strength_follows_the_epochs_as_released() -> None:
    loss: Any = dial().loss
    found = [loss.strength(Progress(4 * (epoch - 1) + 3, 4, 100)) for epoch in (1, 5, 10, 25, 50, 100)]
    assert found == pytest.approx([0.05, 0.24, 0.46, 0.85, 0.99, 1.0], abs=0.005)
    # All updates of an epoch have one strength.
    assert loss.strength(Progress(0, 4, 100)) == found[0]


def test_strength_can_follow_the_updates() -> None:
    loss: Any = dial(reversal="update").loss
    assert loss.strength(Progress(0, 4, 100)) == 0
    rising = [loss.strength(Progress(step, 4, 100)) for step in range(400)]
    assert rising == sorted(rising)
    assert len(set(rising[:100])) == 100


# The loss.


def plain_terms(model: nn.Module, running: Any, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, and the domain terms from features that are found layer by layer."""
    assert isinstance(model, nn.Sequential)
    body, last = model[:-1], model[-1]
    h, h_adv = body(batch.x), body(batch.x_adv)
    n = len(batch.x)
    domains = F.cross_entropy(running.head(h), torch.zeros(n, dtype=torch.int64))
    domains = domains + F.cross_entropy(running.head(h_adv), torch.ones(n, dtype=torch.int64))
    return last(h), last(h_adv), domains


@pytest.mark.parametrize("base", ["kl", "ce"])
@pytest.mark.parametrize(("hidden", "head_norm"), [((), False), ((12,), True), ((6, 5), False)])
def test_loss_is_its_formula_and_its_gradient_is_reversed_below_the_head(
    base: Any, hidden: tuple[int, ...], head_norm: bool
) -> None:
    beta, r = 3.0, 0.7
    model, _, running = started(base=base, beta=beta, domain_weight=r, hidden=hidden, head_norm=head_norm)
    data = a_batch()
    running.begin(data, Progress(40, 4, 100))
    weights, own = list(model.parameters()), list(running.head.parameters())
    loss = running(model, data)
    found = torch.autograd.grad(loss, weights + own)

    z, z_adv, domains = plain_terms(model, running, data)
    robust = kl_divergence(z_adv, z.log_softmax(1)).mean() if base == "kl" else F.cross_entropy(z_adv, data.y)
    task = F.cross_entropy(z, data.y) + beta * robust
    assert loss.item() == pytest.approx((task + r * domains).item())
    strength = running.settings.strength(Progress(40, 4, 100))
    assert 0.4 < strength < 0.6
    of_task = torch.autograd.grad(task, weights, retain_graph=True)
    of_domains = torch.autograd.grad(r * domains, weights + own, allow_unused=True)
    for grad, one, other in zip(found[: len(weights)], of_task, of_domains[: len(weights)], strict=True):
        # The classifier is above the features and has no part in the domains.
        expected = one if other is None else one - strength * other
        assert torch.allclose(grad, expected, rtol=1e-9, atol=1e-12)
    for grad, expected in zip(found[len(weights) :], of_domains[len(weights) :], strict=True):
        assert expected is not None
        assert torch.allclose(grad, expected, rtol=1e-9, atol=1e-12)


def test_at_strength_0_the_head_learns_and_the_features_do_not_notice() -> None:
    model, _, running = started(beta=0.0, domain_weight=5.0, reversal="update")
    running.begin(a_batch(), Progress(0, 4, 100))
    weights, own = list(model.parameters()), list(running.head.parameters())
    found = torch.autograd.grad(running(model, a_batch()), weights + own)
    z, _, _ = plain_terms(model, running, a_batch())
    expected = torch.autograd.grad(F.cross_entropy(z, a_batch().y), weights)
    for grad, other in zip(found, expected, strict=False):
        assert torch.allclose(grad, other, rtol=1e-9, atol=1e-12)
    assert any(grad.abs().max() > 1e-3 for grad in found[len(weights) :])


def test_without_the_head_s_weight_it_is_trades() -> None:
    found = train(dial(domain_weight=0.0, beta=6.0, steps=3), conv_net())
    assert same(found, train(trades(beta=6.0, steps=3), conv_net()))


def test_the_base_of_cross_entropy_does_not_weigh_the_head_either() -> None:
    """With beta and domain_weight 0, only the clean cross-entropy remains."""
    one = train(dial(base="ce", domain_weight=0.0, beta=0.0, steps=1), conv_net(dtype=torch.float64), updates=1)
    other = train(dial(base="kl", domain_weight=0.0, beta=0.0, steps=1), conv_net(dtype=torch.float64), updates=1)
    names = list(conv_net().state_dict())
    for name, a, b in zip(names, one, other, strict=True):
        if "running" not in name:
            assert torch.allclose(a, b, rtol=0, atol=1e-12)


# The head.


def test_the_head_of_the_released_network() -> None:
    head = domain_head(640, (100,), True, torch.empty(1), stream())
    assert [type(layer) for layer in head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert [layer.weight.shape for layer in head if isinstance(layer, nn.Linear)] == [(100, 640), (2, 100)]
    assert not [name for name, _ in head.named_buffers()], "running statistics that are never used"
    assert head[0].weight.abs().max() <= 640**-0.5
    assert len(domain_head(512, (), False, torch.empty(1), stream())) == 1


def test_the_head_is_drawn_from_the_noise_it_is_given_and_from_nothing_else() -> None:
    state = torch.get_rng_state()
    heads = [domain_head(8, (4,), True, torch.empty(1), stream(seed)) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state), "drew from the global generator"
    assert torch.equal(heads[0][0].weight, heads[1][0].weight)
    assert not torch.equal(heads[0][0].weight, heads[2][0].weight)


def test_the_head_is_trained_as_the_network_is_and_is_no_part_of_it() -> None:
    model, optimizer, running = started()
    group = optimizer.param_groups[-1]
    assert [id(p) for p in group["params"]] == [id(p) for p in running.head.parameters()]
    assert (group["momentum"], group["weight_decay"]) == (0.9, 0.01)
    assert not {id(p) for p in model.parameters()} & {id(p) for p in running.head.parameters()}


def test_the_attack_does_not_ask_the_head() -> None:
    """The adversarial images do not depend on the head."""
    model = conv_net()
    results = [train(dial(domain_weight=0.0, hidden=hidden, steps=2), deepcopy(model)) for hidden in ((), (7,))]
    assert same(*results)


@pytest.mark.parametrize("base", ["kl", "ce"])
@pytest.mark.parametrize("with_awp", [False, True])
def test_a_step_costs_its_attack_and_two_branches(base: Any, with_awp: bool) -> None:
    model, defense = conv_net(), dial(base=base, steps=5)
    before = tracked(model)
    with counted(model) as passes:
        train(replace(defense, weights=Awp()) if with_awp else defense, model, updates=1)
    crafting, branches = (6 if base == "kl" else 5), (4 if with_awp else 2)
    assert (passes.forwards, passes.crafting) == (crafting + branches, crafting)
    assert (passes.input, passes.weight) == (5, branches)
    assert [now - then for now, then in zip(tracked(model), before, strict=True)] == [2] * 2


def test_what_the_head_tells_is_recorded() -> None:
    model = conv_net().train()
    step = dial().start(model, torch.optim.SGD(model.parameters(), lr=0.1), stream())
    metrics = step(*labeled(), LINF, Progress(0, 4, 10))
    assert set(metrics) == {"loss", "domain_natural", "domain_adversarial"}
    assert all(0 <= metrics[name] <= 1 for name in ("domain_natural", "domain_adversarial"))
