"""The attack of Carlini and Wagner against closed forms, and its search for c."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from judging import noise, predictions, standing
from test_hyperplane import shortest
from torch import Tensor, nn

from robustcli.attacks import carlini_wagner
from robustcli.attacks.adam import Adam
from robustcli.attacks.carlini_wagner import CarliniWagner
from robustcli.attacks.fab import Fab
from robustcli.contracts.networks import conv_net, images, linear_net
from robustcli.errors import RobustCliError
from robustcli.evaluation.passes import count_passes
from robustcli.evaluators.attack import Attacked
from robustcli.threat.threat import ThreatModel

WIDE = ThreatModel("l2", Fraction(100))


def linear(classes: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model in double precision whose boundaries all meet in the gray image."""
    model = linear_net(64, classes, seed=4, dtype=torch.float64)
    weight: Tensor = model[1].weight.detach()  # type: ignore[index]
    bias: Tensor = model[1].bias.detach()  # type: ignore[index]
    bias.copy_(-weight.sum(1) / 2)
    return model, weight, bias


def test_adam_makes_the_steps_of_torch() -> None:
    """The same steps in plain code, for images that leave at different times."""
    generator = torch.Generator().manual_seed(0)
    grads = torch.randn((5, 3, 1, 2, 2), generator=generator, dtype=torch.float64)
    expected = nn.Parameter(torch.zeros(3, 1, 2, 2, dtype=torch.float64))
    optimizer = torch.optim.Adam([expected], lr=0.1)
    adam, x = Adam.start(expected.detach()), torch.zeros(3, 1, 2, 2, dtype=torch.float64)
    keep = torch.tensor([0, 2])
    for step, grad in enumerate(grads):
        expected.grad = grad.clone()
        optimizer.step()
        if step == 2:
            adam, x = adam.rows(keep), x[keep]
        x = x - 0.1 * adam.direction(grad if step < 2 else grad[keep])
    assert torch.allclose(x, expected.detach()[keep], rtol=1e-6)


def test_white_pixels_above_1_by_rounding_do_not_stop_the_search() -> None:
    """Evaluations allow them, and the change of variable is not defined there."""
    model, x = conv_net().eval(), images(6)
    x[:, :, 0], x[:, :, 1] = 1 + 9e-7, -9e-7
    y = predictions(model, x)
    attack = CarliniWagner(steps=100, searches=2, c=10, lr=0.03)
    assert not bool((predictions(model, attack(model, x, y, WIDE, noise(6))) == y).any())


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.slow
def test_distance_to_a_linear_boundary_is_nearly_exact(classes: int) -> None:
    model, weight, _ = linear(classes)
    x = 0.4 + 0.2 * images(20, dtype=torch.float64)
    y = predictions(model, x)
    with torch.no_grad():
        logits = model(x)
    gaps = logits.gather(1, y[:, None]) - logits
    radii = gaps / torch.linalg.vector_norm(weight[y][:, None] - weight[None], dim=2)
    exact = radii.scatter(1, y[:, None], torch.inf).amin(1)
    x_adv = CarliniWagner(keep="nearest", lr=0.003)(model, x, y, WIDE, noise(20))
    assert (predictions(model, x_adv) != y).all()
    found = WIDE.size(x_adv - x)
    assert (found >= exact * (1 - 1e-9)).all()
    # Not exact below a step's length: 0.003 in w is 0.0015 in each of 64 gray pixels.
    assert (found <= exact * 1.02 + 0.4 * 0.0015 * 8).all()


@pytest.mark.slow
def test_the_box_is_kept_and_costs_what_it_must() -> None:
    """With two classes and pixels on the border of the box, near the solution of a general solver."""
    model, weight, bias = linear(2)
    with torch.no_grad():
        bias[0] += 1
    x = images(12, dtype=torch.float64)
    y = predictions(model, x)
    x_adv = CarliniWagner(keep="nearest", steps=1500)(model, x, y, WIDE, noise(12))
    assert WIDE.contains(x_adv, x).all()
    found, blocked = WIDE.size(x_adv - x), 0
    for i in range(len(x)):
        normal = weight[1 - y[i]] - weight[y[i]]
        gap = float(normal @ x[i].flatten() + bias[1 - y[i]] - bias[y[i]])
        length = shortest(x[i].flatten().numpy(), gap, normal.numpy(), "l2")
        assert length is not None
        blocked += length > abs(gap) / float(torch.linalg.vector_norm(normal)) * (1 + 1e-6)
        assert length * (1 - 1e-9) <= found[i].item() <= length * 1.1
    assert blocked > 6, "the box was hardly ever in the way"


def network() -> tuple[nn.Module, Tensor, Tensor]:
    model, x = conv_net(3, dtype=torch.float64).eval(), images(16, 3, dtype=torch.float64)
    return model, x, predictions(model, x)


@pytest.mark.slow
def test_it_goes_as_near_as_fab() -> None:
    model, x, y = network()
    found, others = (
        attack(model, x, y, WIDE, noise(16))
        for attack in (CarliniWagner(keep="nearest", lr=0.003, steps=400, searches=5, c=1.0), Fab(keep="nearest"))
    )
    ours, fab = WIDE.size(found - x), WIDE.size(others - x)
    assert np.median((ours / fab).numpy()) < 1.05
    assert (ours > 0.9 * fab).all()
    # Just beyond the boundary, since the confidence is zero.
    lead = lead_of_a_wrong_class(model, found, y)
    assert ((lead >= 0) & (lead < 0.02)).all()


@pytest.mark.slow
def test_confidence_is_a_lead_of_a_wrong_class() -> None:
    model, x, y = network()
    attack = CarliniWagner(confidence=0.1, keep="nearest", lr=0.003, steps=200, searches=5, c=1.0)
    x_adv = attack(model, x, y, WIDE, noise(16))
    lead = lead_of_a_wrong_class(model, x_adv, y)
    assert ((lead >= 0.1) & (lead < 0.12)).all()


def lead_of_a_wrong_class(model: nn.Module, x_adv: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        logits = model(x_adv)
    return logits.scatter(1, y[:, None], -torch.inf).amax(1) - logits.gather(1, y[:, None]).squeeze(1)


@pytest.mark.slow
def test_broken_is_what_has_a_wrong_point_inside() -> None:
    """The radius decides only which images are broken and when the search may end."""
    model, x, y = network()
    nearest = CarliniWagner(keep="nearest", steps=200, searches=6, c=1.0)(model, x, y, WIDE, noise(16))
    sizes = WIDE.size(nearest - x)
    assert (predictions(model, nearest) != y).all()
    inside = ThreatModel("l2", Fraction(float(sizes.median()) * 1.0001))
    is_near = sizes <= inside.radius
    costs = {}
    for keep in ("fooled", "nearest"):
        attack = CarliniWagner(keep=keep, steps=200, searches=6, c=1.0)  # type: ignore[arg-type]
        with count_passes(model) as passes:
            x_adv = attack(model, x, y, inside, noise(16))
        costs[keep] = passes.gradients
        is_broken = predictions(model, x_adv) != y
        assert torch.equal(is_broken, is_near)
        assert torch.equal(x_adv[~is_broken], x[~is_broken])
        assert (inside.size(x_adv - x) <= inside.radius).all()
        if keep == "nearest":
            assert torch.equal(x_adv[is_broken], nearest[is_broken])
    assert costs["fooled"] < 0.8 * costs["nearest"]


@pytest.mark.slow
def test_more_values_of_c_never_end_farther_away() -> None:
    model, x, y = network()
    sizes = []
    for searches in (1, 4, 7, 9):
        x_adv = CarliniWagner(searches=searches, steps=100, c=0.01, keep="nearest")(model, x, y, WIDE, noise(16))
        sizes.append(torch.where(predictions(model, x_adv) != y, WIDE.size(x_adv - x), torch.inf))
    for fewer, more in pairwise(sizes):
        assert (more <= fewer).all()
    assert sizes[0].isinf().all(), "the first c is too small for a misclassified point"
    assert sizes[-1].isfinite().all()
    assert (sizes[3] < 0.998 * sizes[2]).any()


@pytest.mark.slow
def test_survivors_do_not_depend_on_batches() -> None:
    model, x = conv_net(3).eval(), images(24, 3)
    y, threat = predictions(model, x), ThreatModel("l2", Fraction(1, 5))
    attack = CarliniWagner(steps=60, searches=4, c=1, lr=0.003)
    found = [standing(Attacked(attack=attack, batch_size=size), model, x, y, threat, noise(24)) for size in (5, 24)]
    assert torch.equal(found[0], found[1])
    assert 0 < int(found[0].sum()) < 24


@pytest.mark.slow
def test_black_and_white_images_are_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Far out in w the first steps change no pixel, so a loss that stagnates may fall later."""
    model, x = conv_net().eval(), images(8).gt(0.5).float()
    y, attack = predictions(model, x), CarliniWagner(steps=300, searches=3, c=1.0)
    found = attack(model, x, y, WIDE, noise(8))
    assert (predictions(model, found) != y).all()
    monkeypatch.setattr(carlini_wagner, "_FALLS", torch.inf)
    assert torch.equal(found, attack(model, x, y, WIDE, noise(8)))


def test_a_descent_that_arrived_ends_sooner() -> None:
    model, x, y = network()
    with count_passes(model) as passes:
        CarliniWagner(keep="nearest", searches=1, steps=300)(model, x, y, WIDE, noise(16))
    assert 0 < passes.gradients < 0.8 * 16 * 300


def test_a_flat_model_is_not_broken_and_gives_no_nan() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    with torch.no_grad():
        model[1].weight.zero_()
    x = images(6, 3)
    attack = CarliniWagner(steps=30, searches=3)
    assert torch.equal(attack(model, x, predictions(model, x), ThreatModel("l2", Fraction(1)), noise(6)), x)


def test_other_norms_are_refused() -> None:
    model, x, y = network()
    with pytest.raises(RobustCliError, match="attack carlini_wagner supports only l2; the threat is linf"):
        CarliniWagner()(model, x, y, ThreatModel("linf", Fraction(1, 10)), noise(16))
