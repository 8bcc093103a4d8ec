"""Projected Adam against torch's optimizer with a projection after every step."""

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.attacks.adam_pgd import AdamPgd
from robustcli.attacks.losses import LOSSES
from robustcli.contracts.networks import conv_net, images, labels
from robustcli.errors import RobustCliError
from robustcli.evaluation.passes import count_passes
from robustcli.registry.types import Norm
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel

THREATS = [ThreatModel("linf", Fraction(8, 255)), ThreatModel("l2", Fraction(1, 2)), ThreatModel("l1", Fraction(2))]


def setting() -> tuple[nn.Module, Tensor, Tensor]:
    return conv_net(3, dtype=torch.float64).eval(), images(8, 3, dtype=torch.float64), labels(8)


def noise() -> IndexedNoise:
    return IndexedNoise(0, torch.arange(8))


@pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat.norm)
def test_steps_are_those_of_adam_with_a_projection(threat: ThreatModel) -> None:
    model, x, y = setting()
    point = threat.project(threat.sample(x, noise()), x).clone().requires_grad_()
    optimizer = torch.optim.Adam([point], lr=0.1, betas=(0.9, 0.999), eps=1e-9, maximize=True)
    for step in range(6):
        optimizer.param_groups[0]["lr"] = 0.1 if step < 4 else 0.02
        optimizer.zero_grad()
        F.cross_entropy(model(point), y, reduction="sum").backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            point.copy_(threat.project(point, x))
    found = AdamPgd(steps=6, step_sizes=(0.1, 0.02), after=(4,))(model, x, y, threat, noise())
    assert torch.allclose(found, point, rtol=0, atol=1e-9)


def test_the_divergence_has_the_gradient_of_the_predicted_shares() -> None:
    model, x, _ = setting()
    with torch.no_grad():
        shares = model(x).softmax(1)
    by_kl = AdamPgd(loss="kl")(model, x, labels(8), THREATS[0], noise())
    assert torch.allclose(by_kl, AdamPgd()(model, x, shares, THREATS[0], noise()), rtol=0, atol=1e-6)
    assert not torch.equal(by_kl, AdamPgd()(model, x, labels(8), THREATS[0], noise()))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_it_raises_the_loss(norm: Norm) -> None:
    model, x, y = setting()
    threat = next(threat for threat in THREATS if threat.norm == norm)
    with torch.no_grad():
        found = AdamPgd()(model, x, y, threat, noise())
        assert float(LOSSES["ce"].score(model(found), y).mean()) > float(LOSSES["ce"].score(model(x), y).mean())


def test_ten_steps_are_ten_gradients() -> None:
    model, x, y = setting()
    with count_passes(model) as passes:
        AdamPgd()(model, x, y, THREATS[0], noise())
    assert (passes.forwards, passes.gradients) == (80, 80)


def test_step_sizes_and_their_ends_belong_together() -> None:
    with pytest.raises(RobustCliError, match="3 step_sizes with 1 numbers"):
        AdamPgd(step_sizes=(0.1, 0.01, 0.001))
