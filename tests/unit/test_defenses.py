"""Published defenses, weight perturbation and averaging against plain loops and formulas."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from typing import Any, Literal, cast

import pytest
import torch
import torch.nn.functional as F
from small_steps import COUNT, batch, counted, progress, same, tracked, train
from torch import Tensor, nn

from robustcli.attacks import Attack
from robustcli.attacks.pgd import Pgd
from robustcli.contracts.networks import conv_net, images, labels
from robustcli.defenses import DEFENSES
from robustcli.defenses.min_max import MinMax
from robustcli.defenses.natural import natural
from robustcli.defenses.pgd_at import pgd_at
from robustcli.defenses.trades import trades
from robustcli.optimization.averaging.averaged_copy import AveragedCopy
from robustcli.optimization.averaging.ema import Ema
from robustcli.optimization.averaging.swa import Swa
from robustcli.optimization.weights.awp import Awp
from robustcli.registry.catalog import catalog
from robustcli.threat.noise import Noise, StreamNoise
from robustcli.threat.threat import ThreatModel

# Limits in which one method is another, bit for bit.


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_trades_with_beta_0_is_natural_training(dropout: float) -> None:
    assert same(train(trades(beta=0, steps=2), conv_net(dropout=dropout)), train(natural(), conv_net(dropout=dropout)))


@pytest.mark.parametrize("start", ["random", "clean"])
def test_pgd_at_with_radius_0_is_natural_training(start: Literal["random", "clean"]) -> None:
    point = ThreatModel("linf", Fraction(0))
    found = train(pgd_at(steps=2, step_size=0.01, start=start), conv_net(), threat=point)
    assert same(found, train(natural(), conv_net()))


def test_pgd_at_without_steps_from_the_clean_image_is_natural_training() -> None:
    assert same(train(pgd_at(steps=0, start="clean"), conv_net()), train(natural(), conv_net()))


def test_pgd_at_is_not_natural_training() -> None:
    assert not same(train(pgd_at(steps=2), conv_net()), train(natural(), conv_net()))


def test_trades_with_radius_0_has_the_gradient_of_natural_training() -> None:
    point = ThreatModel("linf", Fraction(0))
    by_trades, by_nature = (
        train(defense, conv_net(dtype=torch.float64), threat=point, updates=1)
        for defense in (trades(beta=6, steps=2), natural())
    )
    names = list(conv_net().state_dict())
    for name, one, other in zip(names, by_trades, by_nature, strict=True):
        # The statistics see the batch twice: once clean, once as its own adversary.
        if "running" not in name and "tracked" not in name:
            assert torch.allclose(one, other, rtol=0, atol=1e-12), name


@pytest.mark.parametrize("base", [natural(), pgd_at(steps=2), trades(steps=2)], ids=["natural", "pgd_at", "trades"])
@pytest.mark.parametrize("weights", [Awp(gamma=0), Awp(gamma=0.01, warmup=1)], ids=["gamma 0", "in warm-up"])
def test_awp_that_is_off_is_the_base_method(base: MinMax, weights: Awp) -> None:
    assert same(train(replace(base, weights=weights), conv_net()), train(base, conv_net()))


def test_awp_begins_with_the_end_of_its_warmup() -> None:
    base = pgd_at(steps=2)
    late = replace(base, weights=Awp(warmup=1))
    assert same(train(late, conv_net(), updates=3), train(base, conv_net(), updates=3))
    assert not same(train(late, conv_net(), updates=4), train(base, conv_net(), updates=4))


def test_label_smoothing_0_changes_nothing_and_s_is_spread_over_all_classes() -> None:
    assert same(train(natural(label_smoothing=0.0), conv_net()), train(natural(), conv_net()))
    assert not same(train(natural(label_smoothing=0.1), conv_net()), train(natural(), conv_net()))


def test_only_attacked_defenses_aim_at_robustness() -> None:
    assert not natural().is_adversarial
    assert pgd_at().is_adversarial
    assert trades().is_adversarial
    assert replace(natural(), attack=Pgd()).is_adversarial


def test_single_step_defenses_are_recognized_by_their_attack() -> None:
    single = {name for name in DEFENSES if not catalog("defenses")[name].given and DEFENSES.get(name)().is_single_step}
    # Curriculum training begins with one.
    assert single == {"fgsm", "rs_fgsm", "n_fgsm", "grad_align", "free", "cat"}
    assert pgd_at(steps=1).is_single_step
    assert not replace(pgd_at(steps=1), attack=Pgd(steps=2)).is_single_step


# Whole steps against plain loops in double precision.


def perturbable(model: nn.Module) -> list[nn.Parameter]:
    """Weights of convolutions and of linear layers."""
    return [module.weight for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def noise_of(update: int) -> torch.Generator:
    return StreamNoise.on(torch.device("cpu")).reseed(0, "attack", update).generator


def input_gradient(model: nn.Module, points: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    points = points.clone().requires_grad_()
    (grad,) = torch.autograd.grad(score(model(points)), points)
    return grad


def sign_steps(
    model: nn.Module,
    x: Tensor,
    start: Tensor,
    score: Callable[[Tensor], Tensor],
    steps: int,
    radius: float,
    *,
    is_training: bool = False,
) -> Tensor:
    """Projected sign ascent; the ball first, the box second."""
    model.train(is_training)
    x_adv = start
    for _ in range(steps):
        x_adv = x_adv + radius / 4 * input_gradient(model, x_adv, score).sign()
        x_adv = (x + (x_adv - x).clamp(-radius, radius)).clamp(0, 1)
    model.train()
    return x_adv


def reference_loop(
    model: nn.Module,
    method: str,
    *,
    updates: int = 3,
    steps: int = 3,
    beta: float = 6.0,
    clean_forwards: int = 1,
    is_detached: bool = False,
    is_training: bool = False,
    gamma: float = 0.0,
    lr: float = 0.05,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
) -> list[Tensor]:
    """PGD-AT, TRADES and AWP from their papers' equations, with SGD written out."""
    radius = 8 / 255
    velocity = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for update in range(updates):
        x, y = batch(update, torch.float64)
        generator = noise_of(update)
        if method == "pgd_at":
            delta = (2 * torch.rand(x.shape, generator=generator, dtype=x.dtype) - 1) * radius
            begin = (x + delta).clamp(0, 1)
            score = partial(F.cross_entropy, target=y, reduction="sum")
            x_adv = sign_steps(model, x, begin, score, steps, radius, is_training=is_training)
        else:
            begin = x + 0.001 * torch.randn(x.shape, generator=generator, dtype=x.dtype)
            with torch.no_grad():
                p = model.eval()(x).softmax(1)
            x_adv = sign_steps(
                model,
                x,
                begin,
                lambda z, p=p: (p * (p.log() - z.log_softmax(1))).sum(),
                steps,
                radius,  # type: ignore[misc]
            )

        def outer(x: Tensor = x, y: Tensor = y, x_adv: Tensor = x_adv) -> Tensor:
            if method == "pgd_at":
                z = model(x_adv)
                return (z.logsumexp(1) - z[torch.arange(len(y)), y]).mean()
            z = model(x)
            z_adv = model(x_adv)
            target = model(x) if clean_forwards == 2 else z
            target = target.detach() if is_detached else target
            clean = (z.logsumexp(1) - z[torch.arange(len(y)), y]).mean()
            p = target.softmax(1)
            return clean + beta * (p * (p.log() - z_adv.softmax(1).log())).sum(1).mean()

        before = [parameter.detach().clone() for parameter in model.parameters()]
        if gamma:
            proxy_buffers = deepcopy(dict(model.named_buffers()))
            ascent = torch.autograd.grad(outer(), perturbable(model))
            with torch.no_grad():
                for name, buffer in model.named_buffers():
                    buffer.copy_(proxy_buffers[name])
                for weight, grad in zip(perturbable(model), ascent, strict=True):
                    weight += gamma * weight.square().sum().sqrt() * grad / grad.square().sum().sqrt()
        grads = torch.autograd.grad(outer(), list(model.parameters()))
        with torch.no_grad():
            for parameter, old, grad, speed in zip(model.parameters(), before, grads, velocity, strict=True):
                # The decay acts on w + v, the step is taken from w.
                speed.mul_(momentum).add_(grad + weight_decay * parameter)
                parameter.copy_(old - lr * speed)
    return [value.detach().clone() for value in model.state_dict().values()]


@pytest.mark.parametrize(
    ("defense", "reference"),
    [
        (pgd_at(steps=3), {"method": "pgd_at"}),
        (pgd_at(steps=3, attack_bn="train"), {"method": "pgd_at", "is_training": True}),
        (trades(steps=3), {"method": "trades"}),
        (trades(steps=3, beta=1.5, clean_forwards=2), {"method": "trades", "beta": 1.5, "clean_forwards": 2}),
        (trades(steps=3, detach_target=True), {"method": "trades", "is_detached": True}),
        (replace(pgd_at(steps=3), weights=Awp(gamma=0.01)), {"method": "pgd_at", "gamma": 0.01}),
        (replace(trades(steps=3), weights=Awp(gamma=0.005)), {"method": "trades", "gamma": 0.005}),
    ],
    ids=[
        "pgd_at",
        "pgd_at as of Rice",
        "trades",
        "trades as released",
        "trades, target held",
        "pgd_at with awp",
        "trades with awp",
    ],
)
def test_steps_are_those_of_a_plain_loop(defense: MinMax, reference: dict[str, Any]) -> None:
    found = train(defense, conv_net(dtype=torch.float64))
    expected = reference_loop(conv_net(dtype=torch.float64).train(), **reference)
    for name, one, other in zip(conv_net().state_dict(), found, expected, strict=True):
        assert torch.allclose(one.double(), other.double(), rtol=0, atol=1e-10), name


# The cost of a step, and what an attack must not change.


@pytest.mark.parametrize(
    ("defense", "forwards", "inputs", "weights"),
    [
        (natural(), 1, 0, 1),
        (pgd_at(steps=5), 6, 5, 1),
        (pgd_at(steps=5, keep="best"), 7, 5, 1),
        (trades(steps=5), 8, 5, 2),
        (trades(steps=5, clean_forwards=2), 9, 5, 3),
        (trades(steps=5, beta=0), 7, 5, 1),
        (replace(natural(), weights=Awp()), 2, 0, 2),
        (replace(pgd_at(steps=5), weights=Awp()), 7, 5, 2),
        (replace(trades(steps=5), weights=Awp()), 10, 5, 4),
    ],
    ids=[
        "natural",
        "pgd_at",
        "pgd_at, best point",
        "trades",
        "trades as released",
        "trades, beta 0",
        "natural with awp",
        "pgd_at with awp",
        "trades with awp",
    ],
)
def test_a_step_costs_what_it_must(defense: MinMax, forwards: int, inputs: int, weights: int) -> None:
    """K attack steps are K forwards and K backwards to the images; AWP adds the loss once more."""
    model = conv_net()
    with counted(model) as passes:
        train(defense, model, updates=1)
    assert (passes.forwards, passes.input, passes.weight) == (forwards, inputs, weights)


@pytest.mark.parametrize(("attack_bn", "is_training"), [("eval", False), ("train", True), ("batch_no_update", False)])
def test_the_attack_sees_the_mode_that_was_asked_for(attack_bn: Any, is_training: bool) -> None:
    model = conv_net()
    with counted(model) as passes:
        train(pgd_at(steps=3, attack_bn=attack_bn), model, updates=1)
    assert passes.modes == [is_training] * 3 + [True]
    assert passes.crafting == 3


@pytest.mark.parametrize(
    ("defense", "advance"),
    [
        (natural(), 1),
        (pgd_at(steps=3), 1),
        (pgd_at(steps=3, attack_bn="batch_no_update"), 1),
        (pgd_at(steps=3, attack_bn="train"), 4),
        (trades(steps=3), 2),
        (trades(steps=3, clean_forwards=2), 3),
        (trades(steps=3, attack_bn="train"), 6),
        (trades(steps=3, statistics="adversarial"), 1),
        (trades(steps=3, statistics="adversarial", clean_forwards=2), 1),
        (trades(steps=3, statistics="adversarial", beta=0), 1),
        (replace(pgd_at(steps=3), weights=Awp()), 1),
        (replace(trades(steps=3), weights=Awp()), 2),
    ],
)
def test_statistics_advance_with_the_forwards_that_count(defense: MinMax, advance: int) -> None:
    model = conv_net()
    before = tracked(model)
    train(defense, model, updates=2)
    assert [now - then for now, then in zip(tracked(model), before, strict=True)] == [2 * advance] * 2


@dataclass
class Watched(Attack):
    """Records the weights' gradients before and after the inner attack."""

    inside: Attack
    model: nn.Module
    grads: list[bool] = field(default_factory=list)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        assert model is self.model
        assert not any(parameter.requires_grad for parameter in model.parameters())
        x_adv = self.inside(model, x, y, threat, rng)
        self.grads.append(any(parameter.grad is not None for parameter in model.parameters()))
        return x_adv


def test_no_weight_gets_a_gradient_from_the_attack() -> None:
    model = conv_net()
    watched = Watched(Pgd(steps=3), model)
    train(replace(pgd_at(), attack=watched), model, updates=1)
    assert watched.grads == [False]
    assert all(parameter.requires_grad and parameter.grad is not None for parameter in model.parameters())


# Adversarial weight perturbation.


def awp_setting() -> tuple[nn.Module, Callable[[], Tensor]]:
    model = conv_net(dtype=torch.float64).train()
    x, y = batch(dtype=torch.float64)
    return model, lambda: F.cross_entropy(model(x), y)


@pytest.mark.parametrize("gamma", [0.005, 0.01, 0.3])
def test_awp_has_its_relative_size_in_every_layer(gamma: float) -> None:
    model, loss = awp_setting()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    layers = {id(weight) for weight in perturbable(model)}
    with Awp(gamma=gamma).around(model, loss, progress()):
        for name, parameter in model.named_parameters():
            v = parameter.detach() - before[name]
            if id(parameter) in layers:
                assert (v.norm() / before[name].norm()).item() == pytest.approx(gamma, rel=1e-9)
            else:
                assert torch.equal(v, torch.zeros_like(v)), f"{name} is a bias or belongs to a batch norm"


def test_awp_points_along_the_gradient_of_the_full_loss() -> None:
    model, loss = awp_setting()
    grads = torch.autograd.grad(loss(), perturbable(model))
    before = [weight.detach().clone() for weight in perturbable(model)]
    with Awp(gamma=0.001).around(model, loss, progress()):
        for weight, then, grad in zip(perturbable(model), before, grads, strict=True):
            cosine = F.cosine_similarity((weight.detach() - then).flatten(), grad.flatten(), dim=0)
            assert cosine.item() == pytest.approx(1, abs=1e-9)
        inside = loss().item()
    assert inside > loss().item()


def test_awp_leaves_a_layer_without_gradient_where_it_is() -> None:
    model, loss = awp_setting()
    unused = nn.Linear(3, 3, dtype=torch.float64)
    then = unused.weight.detach().clone()
    with Awp(gamma=0.5).around(nn.ModuleList([model, unused]), loss, progress()):
        assert torch.equal(unused.weight, then)
    zero = nn.Linear(4, 2, dtype=torch.float64)
    x = torch.zeros(3, 4, dtype=torch.float64)
    before = zero.weight.detach().clone()
    with Awp(gamma=0.5).around(zero, lambda: zero(x).sum(), progress()):
        assert torch.equal(zero.weight, before)


def test_awp_leaves_zero_weights_where_they_are() -> None:
    layer = nn.Linear(4, 2, dtype=torch.float64)
    nn.init.zeros_(layer.weight)
    x = torch.ones(3, 4, dtype=torch.float64)
    with Awp(gamma=0.5).around(layer, lambda: layer(x).square().sum() + layer(x).sum(), progress()):
        assert torch.equal(layer.weight, torch.zeros_like(layer.weight))


def test_awp_updates_in_the_published_order() -> None:
    """w - lr (m + wd (w + v)): the decay acts on the perturbed weights, the step starts from the others."""
    lr, momentum, decay, gamma = 0.1, 0.9, 0.05, 0.2
    model = nn.Linear(5, 3, dtype=torch.float64)
    w = model.weight.detach().clone()
    b = model.bias.detach().clone()
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = labels(6, 3)

    def gradients(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        p = (x @ weight.T + bias).softmax(1)
        error = (p - F.one_hot(y, 3)) / 6
        return error.T @ x, error.sum(0)

    def loss() -> Tensor:
        return F.cross_entropy(model(x), y)

    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=decay)
    m_w, m_b = torch.zeros_like(w), torch.zeros_like(b)
    for update in range(3):
        optimizer.zero_grad()
        with Awp(gamma=gamma).around(model, loss, progress(update)):
            loss().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        g, _ = gradients(w, b)
        v = gamma * w.norm() * g / g.norm()
        g_w, g_b = gradients(w + v, b)
        m_w = momentum * m_w + g_w + decay * (w + v)
        m_b = momentum * m_b + g_b + decay * b
        w, b = w - lr * m_w, b - lr * m_b
        assert torch.allclose(model.weight, w, rtol=0, atol=1e-12)
        assert torch.allclose(model.bias, b, rtol=0, atol=1e-12)


def test_awp_with_a_rate_of_0_leaves_the_weights_bit_for_bit() -> None:
    model = conv_net()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    train(replace(pgd_at(steps=1), weights=Awp(gamma=0.1)), model, lr=0.0)
    assert same([parameter.detach() for parameter in model.parameters()], before)


# Averages of the weights.


def walk(model: nn.Module, update: int) -> None:
    """Change weights and statistics, as an update does."""
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(1000 * update + number)
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
        model.train()(images(COUNT, seed=update, dtype=next(model.parameters()).dtype))


def clean() -> list[Tensor]:
    return [images(5, seed=70, dtype=torch.float64), images(8, seed=71, dtype=torch.float64)]


def weights_of(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_ema_ramp() -> None:
    ema = Ema(decay=0.995)
    assert ema.decay_at(0) == pytest.approx(0.1)
    assert ema.decay_at(9) == pytest.approx(10 / 19)
    assert ema.decay_at(1789) < 0.995
    assert ema.decay_at(1790) == 0.995
    assert Ema(decay=0.999).decay_at(8989) < 0.999
    assert Ema(decay=0.999).decay_at(8990) == 0.999
    assert Ema(decay=0.3, ramp=False).decay_at(0) == 0.3


@pytest.mark.parametrize(("decay", "ramp", "warmup"), [(0.9, False, 0.0), (0.995, True, 0.0), (0.9, True, 1.0)])
def test_ema_is_its_recursion(decay: float, ramp: bool, warmup: float) -> None:
    model = conv_net(dtype=torch.float64)
    running = Ema(decay=decay, ramp=ramp, warmup=warmup).start(model)
    expected = weights_of(model)
    taken = 0
    for update in range(8):
        walk(model, update)
        running.update(model, progress(update))
        if update < 3 * warmup:
            expected = weights_of(model)
            continue
        d = min(decay, (1 + taken) / (10 + taken)) if ramp else decay
        taken += 1
        expected = [d * past + (1 - d) * now for past, now in zip(expected, weights_of(model), strict=True)]
    for one, other in zip(running.averaged(model, clean).parameters(), expected, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_ema_with_decay_0_is_the_weights_and_with_1_is_frozen() -> None:
    model = conv_net()
    first = weights_of(model)
    following, frozen = Ema(decay=0, ramp=False).start(model), Ema(decay=1, ramp=False).start(model)
    for update in range(3):
        walk(model, update)
        following.update(model, progress(update))
        frozen.update(model, progress(update))
    assert same(weights_of(following.averaged(model, clean)), weights_of(model))
    assert same(weights_of(frozen.averaged(model, clean)), first)


def statistics(model: nn.Module) -> list[Tensor]:
    return [buffer.detach().clone() for buffer in model.buffers()]


def test_copied_statistics_are_those_of_the_trained_network() -> None:
    model = conv_net(dtype=torch.float64)
    running = Ema(buffers="copy").start(model)
    for update in range(3):
        walk(model, update)
        running.update(model, progress(update))
    averaged = running.averaged(model, clean)
    assert same(statistics(averaged), statistics(model))
    then = statistics(averaged)
    walk(model, 3)
    assert same(statistics(averaged), then), "an alias, not a copy"


def test_averaged_statistics_follow_the_recursion_of_the_weights() -> None:
    model = conv_net(dtype=torch.float64)
    running = Ema(decay=0.6, ramp=False, buffers="average").start(model)
    expected = statistics(model)
    for update in range(4):
        walk(model, update)
        running.update(model, progress(update))
        expected = [
            0.6 * past + 0.4 * now if now.is_floating_point() else now
            for past, now in zip(expected, statistics(model), strict=True)
        ]
    for one, other in zip(statistics(running.averaged(model, clean)), expected, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("averaging", [Ema(decay=0.5, buffers="re_estimate"), Swa(start_epoch=0)])
def test_re_estimated_statistics_are_those_of_one_pass(averaging: Ema | Swa) -> None:
    """Means over the batches, by their images, of means and unbiased variances, with the averaged weights in place."""
    model = conv_net(dtype=torch.float64)
    running = averaging.start(model)
    for update in range(3):
        walk(model, update)
        running.update(model, progress(update))
    averaged = running.averaged(model, clean)
    layers = list(averaged.children())
    inputs = clean()
    sizes = torch.tensor([len(x) for x in inputs], dtype=torch.float64)
    weights = (sizes / sizes.sum()).view(-1, 1)
    for depth, layer in enumerate(layers[:6]):
        if isinstance(layer, nn.BatchNorm2d):
            means = torch.stack([x.mean((0, 2, 3)) for x in inputs])
            variances = torch.stack([x.var((0, 2, 3), unbiased=True) for x in inputs])
            assert layer.running_mean is not None
            assert layer.running_var is not None
            assert torch.allclose(layer.running_mean, (weights * means).sum(0), rtol=0, atol=1e-12), depth
            assert torch.allclose(layer.running_var, (weights * variances).sum(0), rtol=0, atol=1e-12), depth
            assert layer.momentum == 0.1
            scale, shift = (value.detach().view(1, -1, 1, 1) for value in (layer.weight, layer.bias))
            inputs = [
                (x - x.mean((0, 2, 3), keepdim=True))
                / (x.var((0, 2, 3), unbiased=False, keepdim=True) + layer.eps).sqrt()
                * scale
                + shift
                for x in inputs
            ]
        else:
            inputs = [layer(x).detach() for x in inputs]
    assert not averaged.training


def test_every_image_counts_the_same_in_re_estimated_statistics() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(2)).double()
    batches = [torch.rand(8, 2, 3, 3, dtype=torch.float64) + shift for shift in (0, 0, 5)]
    batches[-1] = batches[-1][:2]
    shadow = AveragedCopy(model, "re_estimate")
    (norm,) = cast("nn.Sequential", shadow.evaluated(model, lambda: iter(batches)))
    mean = torch.cat(batches).mean((0, 2, 3))
    variance = sum(len(x) * x.var((0, 2, 3)) for x in batches) / 18
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, variance)
    # Batches of one size give the same numbers as a plain mean.
    equal = [torch.rand(8, 2, 3, 3, dtype=torch.float64) for _ in range(7)]
    (found,) = cast("nn.Sequential", shadow.evaluated(model, lambda: iter(equal)))
    plain = nn.BatchNorm2d(2, momentum=None).double()
    for x in equal:
        plain(x)
    assert torch.equal(found.running_mean, plain.running_mean)
    assert torch.equal(found.running_var, plain.running_var)
    assert (found.momentum, len(found._forward_pre_hooks)) == (0.1, 0)


@pytest.mark.parametrize(("start_epoch", "every"), [(0, 1), (2, 1), (1, 2)])
def test_swa_is_the_mean_of_its_epochs(start_epoch: int, every: int) -> None:
    model = conv_net(dtype=torch.float64)
    running = Swa(start_epoch=start_epoch, every=every).start(model)
    taken: list[list[Tensor]] = []
    for update in range(18):
        walk(model, update)
        running.update(model, progress(update))
        epoch, rest = divmod(update + 1, 3)
        if rest == 0 and epoch > start_epoch and (epoch - 1 - start_epoch) % every == 0:
            taken.append(weights_of(model))
        if not taken:
            assert running.averaged(model, clean) is model
    assert len(taken) > 2
    for found, *epochs in zip(running.averaged(model, clean).parameters(), *taken, strict=True):
        assert torch.allclose(found, torch.stack(epochs).mean(0), rtol=0, atol=1e-12)
