"""The single-step defenses against their equations, their limits and their cost."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from robustcli.attacks.fgsm import Fgsm
from robustcli.attacks.n_fgsm import NFgsm
from robustcli.attacks.pgd import Pgd
from robustcli.contracts.networks import conv_net, drawn_from, images, labels, linear_net
from robustcli.data.targets import Labels
from robustcli.defenses import Defense
from robustcli.defenses.fgsm import fgsm
from robustcli.defenses.free import Free
from robustcli.defenses.grad_align import GradAlign
from robustcli.defenses.n_fgsm import n_fgsm
from robustcli.defenses.natural import natural
from robustcli.defenses.pgd_at import pgd_at
from robustcli.defenses.rs_fgsm import rs_fgsm
from robustcli.optimization.progress import Progress
from robustcli.optimization.weights.awp import Awp
from robustcli.registry.types import Norm
from robustcli.threat.noise import StreamNoise
from robustcli.threat.threat import ThreatModel

LINF = ThreatModel("linf", Fraction(8, 255))
POINT = ThreatModel("linf", Fraction(0))
EPS = 8 / 255
COUNT = 8


def batch(number: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return images(COUNT, seed=30 + number, dtype=dtype), labels(COUNT, seed=40 + number)


def noise_of(update: int = 0) -> StreamNoise:
    return StreamNoise.on(torch.device("cpu")).reseed(0, "attack", update)


def train(
    defense: Defense, model: nn.Module, *, updates: int = 3, threat: ThreatModel = LINF, lr: float = 0.05
) -> list[Tensor]:
    """Some updates, as the training loop makes them; weights and buffers afterwards."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    noise = StreamNoise.on(torch.device("cpu"))
    step = defense.start(model.train(), optimizer, noise)
    for update in range(updates):
        noise.reseed(0, "attack", update)
        with drawn_from(update):
            x, y = batch(update, next(model.parameters()).dtype)
            step(x, Labels.of(y), threat, Progress(update, 3, 10))
    return [value.detach().clone() for value in model.state_dict().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def gradient(model: nn.Module, point: Tensor, y: Tensor) -> Tensor:
    """Gradient of the summed cross-entropy at the images, written out."""
    point = point.clone().requires_grad_()
    z = model(point)
    (grad,) = torch.autograd.grad((z.logsumexp(1) - z[torch.arange(len(y)), y]).sum(), point)
    return grad


def two_classes(dtype: torch.dtype = torch.float32) -> nn.Module:
    """A linear model of two classes: the gradient's sign in every pixel is the same wherever it is taken."""
    return linear_net(64, classes=2, dtype=dtype)


# Limits in which one method is another, bit for bit.


def test_fgsm_is_one_step_of_pgd_with_length_eps_from_the_clean_image() -> None:
    one_step = pgd_at(steps=1, step_size=EPS, start="clean", attack_bn="train")
    assert same(train(fgsm(), conv_net()), train(one_step, conv_net()))


def test_rs_fgsm_is_one_step_of_pgd_with_a_quarter_more_than_eps_from_a_random_point() -> None:
    one_step = pgd_at(steps=1, step_size=1.25 * EPS, start="random", attack_bn="train")
    assert same(train(rs_fgsm(), conv_net()), train(one_step, conv_net()))
    assert not same(train(rs_fgsm(), conv_net()), train(fgsm(), conv_net()))


def test_rs_fgsm_with_a_step_of_eps_from_the_clean_image_is_fgsm() -> None:
    from_x = replace(rs_fgsm(), attack=Fgsm(start="clean", step_size=EPS))
    assert same(train(from_x, conv_net()), train(fgsm(), conv_net()))


def test_n_fgsm_without_noise_is_fgsm() -> None:
    assert same(train(n_fgsm(noise=0), conv_net()), train(fgsm(), conv_net()))
    assert not same(train(n_fgsm(), conv_net()), train(fgsm(), conv_net()))


def test_n_fgsm_that_is_clipped_to_the_ball_is_rs_fgsm() -> None:
    """Noise as large as the ball and a quarter more than eps as step; one sums deltas and the other points."""
    clipped = n_fgsm(noise=1, step_size=1.25 * EPS, clip=1)
    models = [conv_net(dtype=torch.float64) for _ in range(2)]
    for one, other in zip(*map(train, (clipped, rs_fgsm()), models), strict=True):
        assert torch.allclose(one.double(), other.double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "defense",
    [fgsm(attack_bn="eval"), rs_fgsm(attack_bn="eval"), n_fgsm(attack_bn="eval")],
    ids=["fgsm", "rs_fgsm", "n_fgsm"],
)
def test_radius_0_is_natural_training(defense: Defense) -> None:
    assert same(train(defense, conv_net(), threat=POINT), train(natural(), conv_net()))


# What the perturbations are.


def test_fgsm_reaches_the_corner() -> None:
    model, (x, y) = conv_net(dtype=torch.float64).eval(), batch(dtype=torch.float64)
    expected = (x + EPS * gradient(model, x, y).sign()).clamp(0, 1)
    assert torch.allclose(Fgsm()(model, x, y, LINF, noise_of()), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("clamp_noise", [True, False])
@pytest.mark.parametrize("share", [0.875, 1.0, 1.25, 2.0])
def test_rs_fgsm_is_its_equation(share: float, clamp_noise: bool) -> None:
    """delta = clip(delta_0 + alpha sign(g)) with g at the start, which may lie outside the box."""
    model, (x, y) = conv_net(dtype=torch.float64).eval(), batch(dtype=torch.float64)
    start = x + EPS * (2 * noise_of().uniform(x) - 1)
    start = start.clamp(0, 1) if clamp_noise else start
    delta = start - x + share * EPS * gradient(model, start, y).sign()
    expected = (x + delta.clamp(-EPS, EPS)).clamp(0, 1)
    attack = rs_fgsm(step_size=share * EPS, clamp_noise=clamp_noise).attack
    assert torch.allclose(attack(model, x, y, LINF, noise_of()), expected, rtol=0, atol=1e-12)


def published_loop(model: nn.Module, method: str, *, updates: int = 3) -> list[Tensor]:
    """Natural training, RS-FGSM and N-FGSM as published, the attack in train mode, with SGD written out."""
    velocity = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for update in range(updates):
        x, y = batch(update, torch.float64)
        noise = 2 * torch.rand(x.shape, generator=noise_of(update).generator, dtype=x.dtype) - 1
        if method == "rs_fgsm":
            delta = (EPS * noise).clamp(-x, 1 - x)
            delta = (delta + 1.25 * EPS * gradient(model, x + delta, y).sign()).clamp(-EPS, EPS)
        elif method == "n_fgsm":
            eta = (2 * EPS * noise).clamp(-x, 1 - x)
            delta = eta + EPS * gradient(model, x + eta, y).sign()
        else:
            delta = torch.zeros_like(x)
        z = model((x + delta).clamp(0, 1))
        loss = (z.logsumexp(1) - z[torch.arange(len(y)), y]).mean()
        grads = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, grad, speed in zip(model.parameters(), grads, velocity, strict=True):
                speed.mul_(0.9).add_(grad + 5e-4 * parameter)
                parameter -= 0.05 * speed
    return [value.detach().clone() for value in model.state_dict().values()]


@pytest.mark.parametrize(
    ("method", "defense"),
    [("natural", natural()), ("rs_fgsm", rs_fgsm()), ("n_fgsm", n_fgsm())],
    ids=["natural", "rs_fgsm", "n_fgsm"],
)
def test_steps_are_those_of_the_published_loops(method: str, defense: Defense) -> None:
    found = train(defense, conv_net(dtype=torch.float64))
    expected = published_loop(conv_net(dtype=torch.float64).train(), method)
    for name, one, other in zip(conv_net().state_dict(), found, expected, strict=True):
        assert torch.allclose(one.double(), other.double(), rtol=0, atol=1e-10), name


def test_noise_that_is_not_clamped_shortens_the_step_on_black_images() -> None:
    x, y = torch.zeros(200, 1, 8, 8), torch.zeros(200, dtype=torch.int64)
    at_the_border = []
    for clamp_noise in (True, False):
        x_adv = rs_fgsm(clamp_noise=clamp_noise).attack(two_classes(), x, y, LINF, noise_of())
        raised = x_adv > 0
        at_the_border.append(float((x_adv[raised] > 0.999 * EPS).double().mean()))
    # 1.25 eps from 0 or above ends at the border; from -eps..0, only from above -eps / 4.
    assert at_the_border == [1.0, pytest.approx(0.625, abs=0.02)]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_step_of_two_eps_from_anywhere_is_the_step_from_the_clean_image(norm: Norm) -> None:
    """Where the box is far and the gradient the same everywhere: in linf, where the ball has corners, not in l2."""
    threat = ThreatModel(norm, Fraction(1, 50))
    x, y, model = torch.full((COUNT, 1, 8, 8), 0.5), torch.zeros(COUNT, dtype=torch.int64), two_classes()
    overshot = Fgsm(start="random", step_size=2 * threat.radius)(model, x, y, threat, noise_of())
    corner = Fgsm()(model, x, y, threat, noise_of())
    assert torch.allclose(overshot, corner, rtol=0, atol=1e-6) == (norm == "linf")


@pytest.mark.parametrize(("share", "size"), [(1.0, 0.816), (1.25, 0.888), (1.5, 0.946), (2.0, 1.0)])
def test_a_random_start_shortens_the_perturbation(share: float, size: float) -> None:
    """E v^2 / eps^2 = ((1 - (a - 1)^3) / 3 + a) / 2 where the sign does not depend on the start; FGSM has 1."""
    x, y = torch.full((200, 1, 8, 8), 0.5), torch.zeros(200, dtype=torch.int64)
    x_adv = Fgsm(start="random", step_size=share * EPS)(two_classes(), x, y, LINF, noise_of())
    found = float((x_adv - x).square().mean().sqrt()) / EPS
    assert found == pytest.approx((((1 - (share - 1) ** 3) / 3 + share) / 2) ** 0.5, abs=0.006)
    assert found == pytest.approx(size, abs=0.006)


@pytest.mark.parametrize("clamp_noise", [True, False])
@pytest.mark.parametrize("clip", [None, 0.75, 1.5])
def test_n_fgsm_is_its_equation(clip: float | None, clamp_noise: bool) -> None:
    """delta = eta + alpha sign(g at x + eta); what the box cuts off, and where, differs between released codes."""
    model, (x, y) = conv_net(dtype=torch.float64).eval(), batch(dtype=torch.float64)
    eta = 2 * EPS * (2 * noise_of().uniform(x) - 1)
    beside = (x + eta).clamp(0, 1)
    delta = (beside - x if clamp_noise else eta) + 0.5 * EPS * gradient(model, beside, y).sign()
    if clip is not None:
        delta = delta.clamp(-clip * EPS, clip * EPS)
    attack = NFgsm(noise=2, step_size=0.5 * EPS, clip=clip, clamp_noise=clamp_noise)
    found = attack(model, x, y, LINF, noise_of())
    assert torch.allclose(found, (x + delta).clamp(0, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("noise", "share", "size"), [(0.5, 1.0, 1.041), (2.0, 1.0, 1.528), (3.0, 1.0, 2.0), (2.0, 0.8, 1.405)]
)
def test_n_fgsm_leaves_the_ball_by_design(noise: float, share: float, size: float) -> None:
    """E |delta|^2 = d eps^2 (k^2 / 3 + (alpha / eps)^2) before the box, and never more than k eps + alpha."""
    x, y = torch.full((200, 1, 8, 8), 0.5), torch.zeros(200, dtype=torch.int64)
    attack = NFgsm(noise=noise, step_size=share * EPS, clip=None)
    delta = (attack(two_classes(), x, y, LINF, noise_of()) - x) / EPS
    assert float(delta.square().mean().sqrt()) == pytest.approx(size, abs=0.01)
    assert noise + share - 0.02 < float(delta.abs().max()) <= noise + share + 1e-5


def test_the_step_shrinks_with_the_radius_unless_it_is_given() -> None:
    """The default step follows the warm-up of eps."""
    x, y, model = torch.full((COUNT, 1, 8, 8), 0.5), torch.zeros(COUNT, dtype=torch.int64), two_classes()
    half = LINF.scaled(0.5)
    relative, absolute = Fgsm(start="random"), Fgsm(start="random", step_size=1.25 * EPS)
    assert torch.equal(*(attack(model, x, y, LINF, noise_of()) for attack in (relative, absolute)))
    assert not torch.equal(*(attack(model, x, y, half, noise_of()) for attack in (relative, absolute)))


# What a step costs.


@dataclass
class Passes:
    """Passes through a model that begins with a convolution.

    Args:
        forwards: of the whole model.
        inputs: gradients that were carried on to the images.
        weights: gradients that were taken of the first convolution's weights.
        wasted: those of them taken while the weights are held.
    """

    forwards: int = 0
    inputs: int = 0
    weights: int = 0
    wasted: int = 0


class _Gradients(TorchDispatchMode):
    """Records which gradients every backward of the first convolution computes."""

    def __init__(self, model: nn.Module, passes: Passes) -> None:
        super().__init__()
        first = next(model.parameters())
        self.shape, self.model, self.passes = first.shape, model, passes

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.convolution_backward.default and args[2].shape == self.shape:
            to_input, to_weight, _ = args[-1]
            self.passes.inputs += to_input
            self.passes.weights += to_weight
            self.passes.wasted += to_weight and not any(p.requires_grad for p in self.model.parameters())
        return function(*args, **(kwargs or {}))


@contextmanager
def counted(model: nn.Module) -> Iterator[Passes]:
    passes = Passes()

    def forward(*_: Any) -> None:
        passes.forwards += 1

    hook = model.register_forward_hook(forward)
    try:
        with _Gradients(model, passes):
            yield passes
    finally:
        hook.remove()


COSTS = [
    pytest.param(natural(), Passes(1, 0, 1), id="natural"),
    pytest.param(fgsm(), Passes(2, 1, 1), id="fgsm"),
    pytest.param(rs_fgsm(), Passes(2, 1, 1), id="rs_fgsm"),
    pytest.param(n_fgsm(), Passes(2, 1, 1), id="n_fgsm"),
    pytest.param(Free(), Passes(1, 1, 1), id="free"),
    pytest.param(GradAlign(align=0), Passes(2, 1, 1), id="grad_align, lambda 0"),
    # The second gradient's own forward is gone through backwards once more, for its derivative.
    pytest.param(GradAlign(), Passes(3, 2, 2), id="grad_align"),
    pytest.param(replace(rs_fgsm(), weights=Awp()), Passes(3, 1, 2), id="rs_fgsm with awp"),
    pytest.param(replace(rs_fgsm(), attack=Pgd(steps=3)), Passes(4, 3, 1), id="three steps"),
]


@pytest.mark.parametrize(("defense", "cost"), COSTS)
def test_a_step_costs_what_it_must(defense: Defense, cost: Passes) -> None:
    """Forwards, backwards to the images and backwards to the weights; none to the weights while crafting."""
    model = conv_net()
    with counted(model) as passes:
        train(defense, model, updates=1)
    assert passes == cost


@pytest.mark.parametrize(
    ("defense", "advance"),
    [
        (natural(), 1),
        (fgsm(), 2),
        (fgsm(attack_bn="eval"), 1),
        (rs_fgsm(), 2),
        (n_fgsm(), 2),
        (Free(), 1),
        (GradAlign(), 3),
        (GradAlign(align=0), 2),
        (GradAlign(attack_bn="eval"), 1),
    ],
)
def test_statistics_advance_with_the_forwards_in_train_mode(defense: Defense, advance: int) -> None:
    model = conv_net()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [int(norm.num_batches_tracked) for norm in norms]
    train(defense, model, updates=2)
    assert [int(norm.num_batches_tracked) - then for norm, then in zip(norms, before, strict=True)] == [2 * advance] * 2
