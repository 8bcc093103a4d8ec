"""SPSA: its gradient estimate, strength and cost."""

import math
from fractions import Fraction

import pytest
import torch
from judging import noise, predictions, standing
from torch import Tensor, nn

from robustcli.attacks.gradient import input_gradient
from robustcli.attacks.losses import LOSSES
from robustcli.attacks.pgd import Pgd
from robustcli.attacks.spsa import Spsa
from robustcli.contracts.networks import conv_net, images, labels, linear_net
from robustcli.evaluation.passes import count_passes
from robustcli.evaluators.attack import Attacked
from robustcli.registry.types import Norm
from robustcli.threat.threat import ThreatModel

EPS: dict[Norm, Fraction] = {"linf": Fraction(1, 10), "l2": Fraction(1, 2), "l1": Fraction(3)}

in_every_norm = pytest.mark.parametrize("norm", list(EPS))


def cosines(one: Tensor, other: Tensor) -> Tensor:
    return torch.cosine_similarity(one.flatten(1), other.flatten(1))


@pytest.mark.parametrize("samples", [16, 64, 1024])
def test_the_estimate_is_as_good_as_its_samples_allow(samples: int) -> None:
    """Of a linear function of d pixels: length and angle of a mean of n products v <v, g>."""
    model, x, y = linear_net(64, 2, seed=4, dtype=torch.float64), images(200, dtype=torch.float64), labels(200, 2)
    loss = LOSSES["margin"]
    exact, _, _ = input_gradient(model, x, loss, y)
    estimate = Spsa(samples=samples).slope(model, x, loss, y, noise(200), 10**6)
    # Along g the products have mean |g|^2; across it they spread over the other d - 1 directions.
    expected = 1 / math.sqrt(1 + 63 / samples)
    assert cosines(estimate, exact).mean().item() == pytest.approx(expected, rel=0.03)
    along = (estimate * exact).flatten(1).sum(1) / exact.square().flatten(1).sum(1)
    assert along.mean().item() == pytest.approx(1, abs=5 * math.sqrt(2 / samples / 200))


@pytest.mark.parametrize("loss", ["margin", "ce", "dlr"])
def test_the_estimate_points_along_the_gradient_of_a_network(loss: str) -> None:
    model, x = conv_net(dtype=torch.float64).eval(), images(6, dtype=torch.float64)
    y = predictions(model, x)
    exact, _, _ = input_gradient(model, x, LOSSES[loss], y)  # type: ignore[index]
    estimate = Spsa(samples=2000, delta=1e-4).slope(model, x, LOSSES[loss], y, noise(6), 10**6)  # type: ignore[index]
    assert (cosines(estimate, exact) > 0.97).all()


@pytest.mark.parametrize("samples", [5, 20])
def test_the_size_of_passes_does_not_matter(samples: int) -> None:
    model, x = conv_net(dtype=torch.float64).eval(), images(6, dtype=torch.float64)
    y, loss, attack = predictions(model, x), LOSSES["margin"], Spsa(samples=samples)
    found = [attack.slope(model, x, loss, y, noise(6), limit) for limit in (1, 7, 10**6)]
    assert torch.allclose(found[0], found[2], rtol=0, atol=1e-9)
    assert torch.allclose(found[1], found[2], rtol=0, atol=1e-9)


def test_it_nears_the_worst_case_of_a_linear_model() -> None:
    model = linear_net(64, 2, seed=4, dtype=torch.float64)
    weight: Tensor = model[1].weight.detach()  # type: ignore[index]
    x, y = 0.35 + 0.3 * images(20, dtype=torch.float64), labels(20, 2)
    # From points that the attack cannot break, since broken ones leave.
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([30.0, 0.0]))  # type: ignore[index]
    y = torch.zeros_like(y)
    threat = ThreatModel("linf", Fraction(1, 20))
    x_adv = Spsa(steps=40, samples=64)(model, x, y, threat, noise(20))
    with torch.no_grad():
        rise = (model(x_adv) - model(x)) @ torch.tensor([-1.0, 1.0], dtype=torch.float64)
    most = threat.radius * (weight[1] - weight[0]).abs().sum()
    assert (rise <= most * (1 + 1e-9)).all()
    assert (rise >= 0.9 * most).all()


@in_every_norm
def test_survivors_cost_only_forwards_and_keep_their_worst_point(norm: Norm) -> None:
    model, x = conv_net(3, dtype=torch.float64).eval(), images(8, 3, dtype=torch.float64)
    y = predictions(model, x)
    threat = ThreatModel(norm, EPS[norm] / 10**4)
    loss = LOSSES["margin"]
    found = []
    for steps in (1, 3, 6):
        with count_passes(model) as passes:
            x_adv = Spsa(steps=steps, samples=10)(model, x, y, threat, noise(8))
        assert (predictions(model, x_adv) == y).all()
        assert (passes.forwards, passes.gradients) == (8 * (steps * 21 + 1), 0)
        with torch.no_grad():
            found.append(loss.score(model(x_adv), y))
    assert (found[1] >= found[0]).all()
    assert (found[2] >= found[1]).all()
    assert (found[0] > loss.score(model(x), y)).all()


def test_an_image_leaves_the_batch_once_it_is_misclassified() -> None:
    model, x, y = conv_net(3).eval(), images(16, 3), labels(16)
    y[::2] = predictions(model, x)[::2]
    sizes: list[int] = []
    hook = model.register_forward_hook(lambda _module, _inputs, logits: sizes.append(len(logits)))
    x_adv = Spsa(steps=20, samples=32)(model, x, y, ThreatModel("linf", EPS["linf"]), noise(16))
    hook.remove()
    is_wrong = predictions(model, x) != y
    assert torch.equal(x_adv[is_wrong], x[is_wrong])
    assert sizes[0] == 16
    assert max(sizes) <= 16, "no pass is larger than the batch"
    assert sum(sizes) < 0.7 * 65 * 20 * int((~is_wrong).sum())


@in_every_norm
@pytest.mark.slow
def test_survivors_do_not_depend_on_batches(norm: Norm) -> None:
    model, x = conv_net(3).eval(), images(24, 3)
    eps = {"linf": Fraction(1, 80), "l2": Fraction(1, 2), "l1": Fraction(8)}[norm]
    y, threat = predictions(model, x), ThreatModel(norm, eps)
    found = [
        standing(Attacked(attack=Spsa(steps=5, samples=20), batch_size=size), model, x, y, threat, noise(24))
        for size in (1, 7, 24)
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert 0 < found[0].sum() < 24


class Rounded(nn.Module):
    """A network behind rounding, which has no gradient."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network((64 * x).round() / 64)  # type: ignore[no-any-return]


def test_masked_gradients_do_not_hide_adversarial_examples() -> None:
    model, x = Rounded(conv_net(3).eval()).eval(), images(24, 3)
    y, threat = predictions(model, x), ThreatModel("linf", EPS["linf"])
    by_gradient = Pgd(steps=20, start="clean", keep="fooled")(model, x, y, threat, noise(24))
    assert (predictions(model, by_gradient) == y).all(), "the gradient is zero everywhere"
    by_search = Spsa(steps=20, samples=32)(model, x, y, threat, noise(24))
    assert (predictions(model, by_search) == y).sum() <= 2
