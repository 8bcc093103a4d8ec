"""Momentum is the only difference from PGD."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from judging import noise
from torch import Tensor, nn

from robustcli.attacks.mim import Mim
from robustcli.attacks.pgd import Pgd
from robustcli.contracts.networks import conv_net, images, labels
from robustcli.evaluation.passes import count_passes
from robustcli.registry.types import Norm
from robustcli.threat.threat import ThreatModel

EPS: dict[Norm, Fraction] = {"linf": Fraction(3, 100), "l2": Fraction(1, 4), "l1": Fraction(1)}

in_every_norm = pytest.mark.parametrize("norm", list(EPS))


def setting(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor, Tensor]:
    model, x = conv_net(3, dtype=dtype).eval(), images(16, 3, dtype=dtype)
    with torch.no_grad():
        y = model(x).argmax(1)
    y[:3] = labels(3)
    return model, x, y


@in_every_norm
@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
@pytest.mark.parametrize("keep", ["last", "best", "fooled"])
@pytest.mark.parametrize("start", ["clean", "random"])
def test_without_momentum_it_is_pgd(norm: Norm, loss: Any, keep: Any, start: Any) -> None:
    model, x, y = setting()
    threat = ThreatModel(norm, EPS[norm])
    for steps in (0, 1, 5):
        found = Mim(steps=steps, momentum=0, start=start, loss=loss, keep=keep)(
            model, x, y, threat, noise(16).split("restart 0")
        )
        expected = Pgd(steps=steps, start=start, loss=loss, keep=keep)(model, x, y, threat, noise(16))
        assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_three_steps_are_those_of_the_formula() -> None:
    """v <- mu v + g / |g|_1, x <- clip(x + step sign v), in NumPy but for the gradient."""
    model, x, y = setting()
    threat, step_size, momentum = ThreatModel("linf", EPS["linf"]), 0.004, 0.7
    points, velocity = x.numpy(), np.zeros(x.shape)
    turns = 0
    for _ in range(3):
        at = torch.from_numpy(points.copy()).requires_grad_()
        nn.functional.cross_entropy(model(at), y).backward()
        assert at.grad is not None
        grad = at.grad.numpy()
        velocity = momentum * velocity + grad / np.abs(grad).sum((1, 2, 3), keepdims=True)
        turns += int((np.sign(velocity) != np.sign(grad)).sum())
        points = points + step_size * np.sign(velocity)
        points = np.clip(np.clip(points, x.numpy() - threat.radius, x.numpy() + threat.radius), 0, 1)
    assert turns > 0, "momentum never decided"
    found = Mim(steps=3, step_size=step_size, momentum=momentum)(model, x, y, threat, noise(16))
    assert found.numpy() == pytest.approx(points, abs=1e-12)


@in_every_norm
def test_the_scale_of_the_loss_is_of_no_consequence(norm: Norm) -> None:
    """Gradients of confident images, which nearly vanish, count as much as others."""

    class Louder(nn.Module):
        def __init__(self, network: nn.Module, factor: float) -> None:
            super().__init__()
            self.network, self.factor = network, factor

        def forward(self, x: Tensor) -> Tensor:
            return self.factor * self.network(x)  # type: ignore[no-any-return]

    model, x, y = setting()
    threat = ThreatModel(norm, EPS[norm])
    attack = Mim(steps=5, loss="margin")
    found = [attack(Louder(model, factor), x, y, threat, noise(16)) for factor in (1, 1e-6)]
    assert torch.allclose(found[0], found[1], rtol=0, atol=1e-9)


def test_it_costs_a_gradient_per_step_and_a_forward_where_points_are_kept() -> None:
    model, x, y = setting(torch.float32)
    threat = ThreatModel("linf", Fraction(1, 10**6))
    with torch.no_grad():
        y = model(x).argmax(1)
    for keep, forwards in (("last", 4), ("best", 5), ("fooled", 5)):
        with count_passes(model) as passes:
            Mim(steps=4, keep=keep)(model, x, y, threat, noise(16))  # type: ignore[arg-type]
        assert (passes.forwards, passes.gradients) == (16 * forwards, 16 * 4)


def test_an_image_leaves_with_the_first_misclassified_point_of_its_walk() -> None:
    """Images keep their momentum when others leave the batch."""
    model, x, y = setting()
    threat, steps = ThreatModel("linf", EPS["linf"]), 8
    found = Mim(steps=steps, keep="fooled", momentum=2)(model, x, y, threat, noise(16))
    walks = torch.stack([Mim(steps=count, momentum=2)(model, x, y, threat, noise(16)) for count in range(steps + 1)])
    with torch.no_grad():
        is_fooled = torch.stack([model(points).argmax(1) != y for points in walks])
    firsts = [int(is_fooled[:, i].int().argmax()) for i in range(16) if is_fooled[:, i].any()]
    assert max(firsts) > 1, "momentum has had no past to work with"
    for i in range(16):
        if is_fooled[:, i].any():
            first = int(is_fooled[:, i].int().argmax())
            assert torch.allclose(found[i], walks[first, i], rtol=0, atol=1e-12)
    late = Mim(steps=steps, keep="fooled", momentum=0)(model, x, y, threat, noise(16))
    assert not torch.equal(late, found)


@in_every_norm
def test_a_flat_model_gives_no_nan(norm: Norm) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    with torch.no_grad():
        model[1].weight.zero_()
    x = images(4, 3)
    assert torch.equal(Mim()(model, x, labels(4), ThreatModel(norm, EPS[norm]), noise(4)), x)
