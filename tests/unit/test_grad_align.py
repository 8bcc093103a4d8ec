"""GradAlign against its equation, a difference quotient, and the cases in which its cosine is not defined."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_training import CPU, THREAT
from torch import Tensor, nn

from robustcli.contracts.networks import conv_net, drawn_from, images, labels, linear_net
from robustcli.data.targets import Labels
from robustcli.defenses import Defense, Metrics
from robustcli.defenses.fgsm import fgsm
from robustcli.defenses.grad_align import GradAlign, mean_cosine
from robustcli.optimization.progress import Progress
from robustcli.registry.types import AttackBn
from robustcli.threat.noise import StreamNoise

EPS = 8 / 255
COUNT = 8


def batch(number: int = 0, classes: int = 10) -> tuple[Tensor, Tensor]:
    return images(COUNT, seed=30 + number, dtype=torch.float64), labels(COUNT, classes, seed=40 + number)


def noise_of(update: int) -> StreamNoise:
    return StreamNoise.on(CPU).reseed(0, "attack", update)


def train(
    defense: Defense, model: nn.Module, *, updates: int = 3, classes: int = 10, lr: float = 0.05
) -> tuple[list[Tensor], list[Metrics]]:
    """Some updates of plain SGD; weights and buffers afterwards, and the metrics."""
    noise = StreamNoise.on(CPU)
    step = defense.start(model.train(), torch.optim.SGD(model.parameters(), lr=lr), noise)
    found = []
    for update in range(updates):
        noise.reseed(0, "attack", update)
        x, y = batch(update, classes)
        with drawn_from(update):
            found.append(step(x.to(next(model.parameters()).dtype), Labels.of(y), THREAT, Progress(update, 3, 10)))
    return [value.detach().clone() for value in model.state_dict().values()], found


def gradient(model: nn.Module, points: Tensor, y: Tensor, *, with_graph: bool) -> Tensor:
    points = points.clone().requires_grad_()
    total = F.cross_entropy(model(points), y, reduction="sum")
    return torch.autograd.grad(total, points, create_graph=with_graph)[0]


def statistics_held(model: nn.Module, is_held: bool) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = not is_held


def reference_loop(model: nn.Module, *, align: float, detach_clean: bool, attack_bn: AttackBn) -> list[Tensor]:
    """Three updates from the paper's equation, with the cosine and SGD written out."""
    model.train()
    for update in range(3):
        x, y = batch(update)
        noise = noise_of(update).uniform(x)

        def at(points: Tensor, with_graph: bool, y: Tensor = y) -> Tensor:
            model.train(attack_bn != "eval")
            statistics_held(model, attack_bn == "batch_no_update")
            grad = gradient(model, points, y, with_graph=with_graph)
            statistics_held(model, False)
            model.train()
            return grad

        clean = at(x, not detach_clean)
        x_adv = (x + EPS * clean.detach().sign()).clamp(0, 1)
        loss = F.cross_entropy(model(x_adv), y)
        beside = at(x + EPS * (2 * noise - 1), True)
        one, other = clean.flatten(1), beside.flatten(1)
        cosine = (one * other).sum(1) / (one.square().sum(1).sqrt() * other.square().sum(1).sqrt())
        loss = loss + align * (1 - cosine.mean())
        grads = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, grad in zip(model.parameters(), grads, strict=True):
                parameter.sub_(0.05 * grad)
    return [value.detach().clone() for value in model.state_dict().values()]


@pytest.mark.parametrize("detach_clean", [True, False])
@pytest.mark.parametrize("attack_bn", ["train", "eval", "batch_no_update"])
def test_updates_are_those_of_a_plain_loop(detach_clean: bool, attack_bn: AttackBn) -> None:
    options: dict[str, Any] = {"align": 0.7, "detach_clean": detach_clean, "attack_bn": attack_bn}
    found, _ = train(GradAlign(**options), conv_net(dtype=torch.float64))
    expected = reference_loop(conv_net(dtype=torch.float64), **options)
    for name, one, other in zip(conv_net().state_dict(), found, expected, strict=True):
        assert torch.allclose(one.double(), other.double(), rtol=0, atol=1e-10), name


def smooth_net() -> nn.Module:
    """A network without corners, for difference quotients."""
    with drawn_from(0):
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Softplus(beta=5), nn.Flatten(), nn.Linear(4 * 36, 10)).to(
            torch.float64
        )


def test_the_update_is_the_slope_of_the_objective() -> None:
    """The update agrees with finite differences of the objective."""
    model, align, (x, y) = smooth_net(), 3.0, batch()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    clean = gradient(model, x, y, with_graph=False)
    x_adv = (x + EPS * clean.sign()).clamp(0, 1)
    points = x + EPS * (2 * noise_of(0).uniform(x) - 1)

    def objective() -> float:
        beside = gradient(model, points, y, with_graph=False)
        cosine = F.cosine_similarity(clean.flatten(1), beside.flatten(1)).mean()
        return float((F.cross_entropy(model(x_adv), y) + align * (1 - cosine)).detach())

    generator = torch.Generator().manual_seed(5)
    slopes, h = [], 1e-6
    directions = [[torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in before] for _ in range(4)]
    for direction in directions:
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                for parameter, old, along in zip(model.parameters(), before, direction, strict=True):
                    parameter.copy_(old + sign * h * along)
            values.append(objective())
        slopes.append((values[0] - values[1]) / (2 * h))
    with torch.no_grad():
        for parameter, old in zip(model.parameters(), before, strict=True):
            parameter.copy_(old)
    after, _ = train(GradAlign(align=align), model, updates=1, lr=1.0)
    for direction, slope in zip(directions, slopes, strict=True):
        moved = sum(float(((old - new) * d).sum()) for old, new, d in zip(before, after, direction, strict=True))
        assert moved == pytest.approx(slope, rel=1e-6)


# Limits.


def test_without_weight_it_is_fgsm_bit_for_bit() -> None:
    (found, metrics), (expected, _) = (train(defense, conv_net()) for defense in (GradAlign(align=0), fgsm()))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert "cosine" not in metrics[0]
    other, _ = train(GradAlign(), conv_net())
    assert not all(torch.equal(one, two) for one, two in zip(other, expected, strict=True))


def test_a_linear_model_of_two_classes_is_aligned_already() -> None:
    """Its gradient has one direction everywhere (with more classes it turns with the probabilities)."""
    models = [linear_net(64, classes=2, dtype=torch.float64) for _ in range(2)]
    found, metrics = train(GradAlign(align=100.0), models[0], classes=2)
    expected, _ = train(fgsm(), models[1], classes=2)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)
    assert [float(values["cosine"]) for values in metrics] == pytest.approx([1.0] * 3, abs=1e-12)


def test_a_large_weight_turns_the_gradients_towards_each_other() -> None:
    """On one batch, the cosine rises with lambda 5 above what FGSM training leaves."""

    def cosine_after(align: float) -> float:
        model = conv_net(dtype=torch.float64)
        for _ in range(15):
            train(GradAlign(align=align), model, updates=1)
        _, metrics = train(GradAlign(align=1e-9, attack_bn="batch_no_update"), model, updates=1, lr=0.0)
        return float(metrics[0]["cosine"])

    assert cosine_after(5.0) > cosine_after(0.0) + 0.02


def test_the_reported_loss_lies_between_the_bounds_of_the_regularizer() -> None:
    align = 1000.0
    _, plain = train(GradAlign(align=0), conv_net(dtype=torch.float64), updates=1)
    _, aligned = train(GradAlign(align=align), conv_net(dtype=torch.float64), updates=1)
    added = float(aligned[0]["loss"] - plain[0]["loss"])
    assert 0 < added < 2 * align
    assert added == pytest.approx(align * (1 - float(aligned[0]["cosine"])), rel=1e-9)


def test_the_noise_is_not_cut_at_the_box() -> None:
    model, seen = conv_net(dtype=torch.float64), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    train(GradAlign(), model, updates=1)
    x, _ = batch()
    clean, x_adv, beside = seen
    assert torch.equal(clean, x)
    assert torch.allclose(beside, x + EPS * (2 * noise_of(0).uniform(x) - 1), rtol=0, atol=1e-12)
    assert beside.min() < 0
    assert x_adv.min() >= 0


# The cosine.


def test_cosine_is_that_of_every_example_and_lies_between_minus_1_and_1() -> None:
    generator = torch.Generator().manual_seed(3)
    one, other = (torch.randn((5, 1, 3, 3), generator=generator, dtype=torch.float64) for _ in range(2))
    expected = F.cosine_similarity(one.flatten(1), other.flatten(1)).mean()
    assert torch.allclose(mean_cosine(one, other), expected, rtol=0, atol=1e-12)
    assert float(mean_cosine(one, 7 * one)) == pytest.approx(1)
    assert float(mean_cosine(one, -1e-12 * one)) == pytest.approx(-1)


@pytest.mark.parametrize("empty", [(0,), (1, 2), (0, 1, 2, 3)])
def test_examples_without_a_gradient_do_not_count(empty: tuple[int, ...]) -> None:
    """They count neither in the mean nor, with an infinite slope, in its derivative."""
    generator = torch.Generator().manual_seed(3)
    fixed, learnt = (torch.randn((4, 6), generator=generator) for _ in range(2))
    fixed[empty[0]] = 0
    learnt[list(empty[1:])] = 0
    learnt.requires_grad_()
    cosine = mean_cosine(fixed, learnt)
    kept = [row for row in range(4) if row not in empty]
    expected = F.cosine_similarity(fixed[kept], learnt[kept]).mean() if kept else torch.ones(())
    assert torch.allclose(cosine, expected, rtol=0, atol=1e-6)
    (grad,) = torch.autograd.grad(cosine, learnt)
    assert torch.isfinite(grad).all()
    assert not grad[list(empty)].any()


def test_a_network_without_any_gradient_is_trained_on_without_harm() -> None:
    model = conv_net(dtype=torch.float64)
    with torch.no_grad():
        # Every unit is dead: the images do not reach the logits.
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.fill_(-100.0)
    found, metrics = train(GradAlign(), model)
    assert all(torch.isfinite(value).all() for value in found)
    assert [float(values["cosine"]) for values in metrics] == [1.0] * 3


class Attending(nn.Module):
    """Attention over the rows of an image, through torch's fused kernel where there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(8, 3 * 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.embed(x.squeeze(1)).unsqueeze(1).chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(query, key, value)
        logits: Tensor = self.head(attended.squeeze(1).mean(1))
        return logits


def test_networks_with_attention_can_be_aligned() -> None:
    with drawn_from(0):
        networks = [Attending(), Attending()]
    networks[1].load_state_dict(networks[0].state_dict())
    aligned, _ = train(GradAlign(align=2.0), networks[0])
    plain, _ = train(fgsm(), networks[1])
    assert all(torch.isfinite(value).all() for value in aligned)
    assert not torch.equal(aligned[0], plain[0])
