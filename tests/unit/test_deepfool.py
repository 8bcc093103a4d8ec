"""DeepFool against closed forms, and what it costs."""

import math
from fractions import Fraction

import pytest
import torch
from judging import noise, predictions, standing
from test_hyperplane import shortest
from torch import Tensor, nn

from robustcli.attacks.deepfool import DeepFool
from robustcli.contracts.networks import conv_net, images, linear_net
from robustcli.evaluation.passes import count_passes
from robustcli.evaluators.attack import Attacked
from robustcli.registry.types import Norm
from robustcli.threat.threat import ThreatModel

NORMS: list[Norm] = ["linf", "l2", "l1"]
DUAL = {"linf": 1.0, "l2": 2.0, "l1": math.inf}
# Wider than the box in every norm.
WIDE = {"linf": Fraction(1), "l2": Fraction(100), "l1": Fraction(10000)}

in_every_norm = pytest.mark.parametrize("norm", NORMS)


def linear(classes: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model in double precision whose boundaries all meet in the gray image."""
    model = linear_net(64, classes, seed=4, dtype=torch.float64)
    weight: Tensor = model[1].weight.detach()  # type: ignore[index]
    bias: Tensor = model[1].bias.detach()  # type: ignore[index]
    bias.copy_(-weight.sum(1) / 2)
    return model, weight, bias


@in_every_norm
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("overshoot", [0.02, 0.2])
def test_one_step_ends_a_share_beyond_the_nearest_linear_boundary(norm: Norm, classes: int, overshoot: float) -> None:
    model, weight, _ = linear(classes)
    x = 0.45 + 0.1 * images(20, dtype=torch.float64)
    y = predictions(model, x)
    with torch.no_grad():
        logits = model(x)
    gaps = logits.gather(1, y[:, None]) - logits
    radii = gaps / torch.linalg.vector_norm(weight[y][:, None] - weight[None], ord=DUAL[norm], dim=2)
    exact = radii.scatter(1, y[:, None], torch.inf).amin(1)
    threat = ThreatModel(norm, WIDE[norm])
    x_adv = DeepFool(steps=1, overshoot=overshoot)(model, x, y, threat, noise(20))
    assert (predictions(model, x_adv) != y).all()
    assert torch.allclose(threat.size(x_adv - x), exact * (1 + overshoot), rtol=1e-9)


@in_every_norm
def test_the_box_bends_the_way(norm: Norm) -> None:
    """With two classes and pixels on the border, the distance is slightly above a general solver's."""
    model, weight, bias = linear(2)
    with torch.no_grad():
        # Far enough from the gray image that pixels run into the box on the way.
        bias[0] += 1
    x = images(12, dtype=torch.float64)
    y = predictions(model, x)
    threat = ThreatModel(norm, WIDE[norm])
    found = threat.size(DeepFool()(model, x, y, threat, noise(12)) - x)
    blocked = 0
    for i in range(len(x)):
        normal = weight[1 - y[i]] - weight[y[i]]
        gap = float(normal @ x[i].flatten() + bias[1 - y[i]] - bias[y[i]])
        length = shortest(x[i].flatten().numpy(), gap, normal.numpy(), norm)
        assert length is not None
        blocked += length > abs(gap) / float(torch.linalg.vector_norm(normal, ord=DUAL[norm])) * (1 + 1e-6)
        assert length * (1 - 1e-9) <= found[i].item() <= length * 1.05
    assert blocked > 6, "the box was hardly ever in the way"


@in_every_norm
def test_broken_is_what_has_its_point_inside(norm: Norm) -> None:
    """The radius decides only which images are broken; survivors are returned unchanged."""
    model, x = conv_net(3, dtype=torch.float64).eval(), images(12, 3, dtype=torch.float64)
    y = predictions(model, x)
    near = DeepFool()(model, x, y, ThreatModel(norm, WIDE[norm]), noise(12))
    sizes = ThreatModel(norm, WIDE[norm]).size(near - x)
    assert (predictions(model, near) != y).all()
    inside = ThreatModel(norm, Fraction(float(sizes.median()) * 1.0001))
    x_adv = DeepFool()(model, x, y, inside, noise(12))
    is_broken = sizes <= inside.radius
    assert 0 < int(is_broken.sum()) < 12
    assert torch.equal(x_adv[is_broken], near[is_broken])
    assert torch.equal(x_adv[~is_broken], x[~is_broken])


def test_images_leave_when_misclassified_and_wrong_ones_do_not_enter() -> None:
    model, x = conv_net(3).eval(), images(16, 3)
    y = predictions(model, x)
    y[:4] = (y[:4] + 1) % 10
    with count_passes(model) as passes:
        x_adv = DeepFool(steps=1, targets=3)(model, x, y, ThreatModel("l2", Fraction(100)), noise(16))
    assert torch.equal(x_adv[:4], x[:4])
    assert (passes.forwards, passes.gradients) == (16 + 2 * 12, 3 * 12)
    with count_passes(model) as passes:
        DeepFool()(model, x, y, ThreatModel("l2", Fraction(100)), noise(16))
    assert passes.gradients < 9 * 12 * 5


def test_aiming_at_more_classes_is_never_farther_on_a_linear_model() -> None:
    model, _, _ = linear(8)
    x = 0.45 + 0.1 * images(40, dtype=torch.float64)
    y = predictions(model, x)
    threat = ThreatModel("l2", WIDE["l2"])
    sizes = [threat.size(DeepFool(targets=count)(model, x, y, threat, noise(40)) - x) for count in (1, 2, 7)]
    assert (sizes[1] <= sizes[0] * (1 + 1e-9)).all()
    assert (sizes[2] <= sizes[1] * (1 + 1e-9)).all()
    assert (sizes[2] < 0.99 * sizes[0]).any(), "the likeliest class is always the nearest"


@pytest.mark.slow
def test_survivors_do_not_depend_on_batches() -> None:
    model, x = conv_net(3).eval(), images(24, 3)
    y = predictions(model, x)
    threat = ThreatModel("l2", Fraction(1, 100))
    found = [
        standing(Attacked(attack=DeepFool(), batch_size=size), model, x, y, threat, noise(24)) for size in (1, 7, 24)
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@in_every_norm
def test_a_flat_model_is_not_broken_and_gives_no_nan(norm: Norm) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    with torch.no_grad():
        model[1].weight.zero_()
    x = images(6, 3)
    assert torch.equal(DeepFool(steps=3)(model, x, predictions(model, x), ThreatModel(norm, Fraction(1)), noise(6)), x)
