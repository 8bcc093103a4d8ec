"""Curves, convergence, alignment and calibration against closed forms and NumPy in double precision."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustcli.attacks import Attack
from robustcli.attacks.fgsm import Fgsm
from robustcli.attacks.none import NoAttack
from robustcli.attacks.pgd import Pgd
from robustcli.contracts.networks import drawn_from, linear_net
from robustcli.diagnostics.calibration import Calibration
from robustcli.diagnostics.distortion import Distortion
from robustcli.diagnostics.eps_curve import EpsCurve
from robustcli.diagnostics.fosc import Fosc
from robustcli.diagnostics.gradient_alignment import GradientAlignment
from robustcli.diagnostics.measuring import attacked, logits_of, summary
from robustcli.diagnostics.one_step import monitors
from robustcli.diagnostics.per_class import PerClass
from robustcli.diagnostics.restarts_curve import RestartsCurve
from robustcli.diagnostics.steps_curve import StepsCurve
from robustcli.errors import EvaluationError, RobustCliError
from robustcli.registry.types import Norm
from robustcli.threat.noise import IndexedNoise, Noise
from robustcli.threat.threat import ThreatModel

Array = NDArray[Any]
COUNT, PIXELS = 60, 64
THREAT = ThreatModel("linf", Fraction(1, 100))
DUAL = {"linf": 1, "l2": 2, "l1": np.inf}


def noise(count: int = COUNT) -> IndexedNoise:
    return IndexedNoise(3, torch.arange(count))


def inner_images(count: int = COUNT) -> Tensor:
    """Images that stay away from the border of the box."""
    return 0.3 + 0.4 * torch.rand((count, 1, 8, 8), generator=torch.Generator().manual_seed(0))


def linear_case(classes: int = 2) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model, images, and labels of which every tenth is wrong."""
    model, x = linear_net(PIXELS, classes), inner_images()
    with torch.no_grad():
        model[1].bias -= model(x).mean(0)  # type: ignore[index]
        y = model(x).argmax(1)
    y[::10] = (y[::10] + 1) % classes
    return model, x, y


def weights_of(model: nn.Module) -> tuple[Array, Array]:
    layer = model[1]  # type: ignore[index]
    return layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()


def exact_radii(model: nn.Module, x: Tensor, y: Tensor, norm: Norm) -> Array:
    """Distance of each image to the other of two classes; negative if it is misclassified."""
    weight, bias = weights_of(model)
    logits = x.flatten(1).double().numpy() @ weight.T + bias
    rows = np.arange(len(y))
    margin = logits[rows, y] - logits[rows, 1 - y.numpy()]
    radii: Array = margin / np.linalg.norm(weight[0] - weight[1], ord=DUAL[norm])
    return radii


def gaps(radii: Array) -> tuple[float, ...]:
    """Some radii between those of the images, close to none."""
    known = np.sort(radii[radii > 0])
    places = [0, len(known) // 4, len(known) // 2, len(known) - 2]
    return (0.0, *(float((known[i] + known[i + 1]) / 2) for i in places), float(known[-1] * 1.1))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_curve_of_a_linear_model_counts_its_exact_radii(norm: Norm) -> None:
    model, x, y = linear_case()
    radii = exact_radii(model, x, y, norm)
    chosen = gaps(radii)
    found = EpsCurve(radii=chosen[::-1], batch_size=16)(model, x, y, ThreatModel(norm, Fraction(1)), noise())
    assert [row["eps"] for row in found["curve"]] == pytest.approx(chosen)
    assert [row["correct"] for row in found["curve"]] == [int((radii > eps).sum()) for eps in chosen]
    assert [row["accuracy"] for row in found["curve"]] == [float((radii > eps).mean()) for eps in chosen]
    assert found["curve"][0]["correct"] == 54
    assert found["curve"][-1]["correct"] == 0


@dataclass(frozen=True)
class OnlySmall(Attack):
    """An attack that loses its strength at large radii."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        return Fgsm()(model, x, y, threat, rng) if threat.eps < Fraction(1, 20) else x


def test_what_is_broken_stays_broken_at_larger_radii() -> None:
    model, x, y = linear_case()
    curve = EpsCurve(radii=(0.5, 0.001, 0.02), batch_size=250, attack=OnlySmall())(model, x, y, THREAT, noise())
    at_small, at_large, beyond = (row["correct"] for row in curve["curve"])
    assert 54 > at_small > at_large
    assert beyond == at_large


def test_without_radii_the_curve_is_about_multiples_of_the_threat() -> None:
    model, x, y = linear_case()
    found = EpsCurve()(model, x, y, ThreatModel("linf", Fraction(1, 10)), noise())["curve"]
    eps = [row["eps"] for row in found]
    assert eps[:3] == [0.0, 0.0125, 0.025]
    assert 0.1 in eps
    assert eps[-1] == 1.0  # the whole box; 32 times the radius would leave it
    assert found[-1]["correct"] == 0
    beyond = EpsCurve()(model, x, y, ThreatModel("l2", Fraction(1, 10)), noise())["curve"]
    assert beyond[-1]["eps"] == pytest.approx(3.2)


def test_empty_curves_are_refused() -> None:
    with pytest.raises(RobustCliError, match=r"eps_curve.radii: the list is empty"):
        EpsCurve(radii=())
    with pytest.raises(RobustCliError, match=r"steps_curve.steps: the list is empty"):
        StepsCurve(steps=())


def test_steps_of_a_linear_model_reach_as_far_as_they_are_long() -> None:
    model, x, y = linear_case()
    radii = exact_radii(model, x, y, "linf")
    eps = float(np.median(radii))
    attack = Pgd(start="clean", step_size=eps / 4, loss="margin", keep="fooled")
    threat = ThreatModel("linf", Fraction(eps))
    found = StepsCurve(steps=(8, 1, 2, 3, 2), batch_size=250, attack=attack)(model, x, y, threat, noise())
    assert [row["steps"] for row in found["curve"]] == [1, 2, 3, 8]
    reach = [eps / 4, eps / 2, 3 * eps / 4, eps * (1 - 1e-6)]
    assert [row["correct"] for row in found["curve"]] == [int((radii > far).sum()) for far in reach]


def test_an_attack_without_steps_has_no_curve_over_them() -> None:
    model, x, y = linear_case()
    with pytest.raises(RobustCliError, match=r"steps_curve.attack: Fgsm has no steps"):
        StepsCurve(steps=(1,), batch_size=250, attack=Fgsm())(model, x, y, THREAT, noise())


@dataclass(frozen=True)
class Chance(Attack):
    """A random point of the threat set."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        return threat.sample(x, rng)


def test_restarts_are_a_pointwise_and() -> None:
    model, x, y = linear_case()
    threat = ThreatModel("linf", Fraction(1, 20))
    found = RestartsCurve(restarts=4, batch_size=7, attack=Chance())(model, x, y, threat, noise())
    with torch.no_grad():
        alive = model(x).argmax(1) == y
        expected = [int(alive.sum())]
        for number in range(4):
            points = threat.sample(x, noise().split(f"try {number}"))
            alive &= model(points).argmax(1) == y
            expected.append(int(alive.sum()))
    assert [row["correct"] for row in found["curve"]] == expected
    assert [row["restarts"] for row in found["curve"]] == [0, 1, 2, 3, 4]
    assert expected[0] > expected[1] > expected[2]


def test_restarts_at_radius_0_find_nothing() -> None:
    model, x, y = linear_case()
    found = RestartsCurve(restarts=2, batch_size=250)(model, x, y, ThreatModel("linf", Fraction(0)), noise())
    assert [row["correct"] for row in found["curve"]] == [54, 54, 54]


def test_restarts_of_one_try_are_refused() -> None:
    model, x, y = linear_case()
    with pytest.raises(RobustCliError, match="all the same"):
        RestartsCurve(restarts=2, batch_size=250, attack=Pgd(start="clean"))(model, x, y, THREAT, noise())


def test_classes_are_counted_one_by_one() -> None:
    model, x, y = linear_case()
    # A third class that no image has and no logit favors.
    weight, bias = weights_of(model)
    wide = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 3)).double()
    with torch.no_grad():
        wide[1].weight.copy_(torch.tensor(np.vstack([weight, 0 * weight[:1]])))
        wide[1].bias.copy_(torch.tensor([*bias, -1e3]))
    radii = exact_radii(model, x, y, "linf")
    threat = ThreatModel("linf", Fraction(gaps(radii)[2]))
    found = PerClass(batch_size=250)(wide, x.double(), y, threat, noise())
    labels = y.numpy()
    for row in found["rows"][:2]:
        own = radii[labels == row["class"]]
        assert row["total"] == len(own)
        assert row["clean_accuracy"] == float((own > 0).mean())
        assert row["robust_accuracy"] == float((own > threat.radius).mean())
    assert found["rows"][2] == {"class": 2, "total": 0, "clean_accuracy": None, "robust_accuracy": None}
    confusion = np.zeros((3, 3), dtype=int)
    for label, radius in zip(labels, radii, strict=True):
        confusion[label, label if radius > threat.radius else 1 - label] += 1
    assert confusion[0, 1] != confusion[1, 0]
    assert found["confusion"] == confusion.tolist()
    shares = [row["robust_accuracy"] for row in found["rows"][:2]]
    assert shares[0] != shares[1]
    assert found["worst_class"] == int(np.argmin(shares))
    assert found["worst_robust_accuracy"] == min(shares)
    assert found["deviation_over_classes"] == pytest.approx(abs(shares[0] - shares[1]) / 2)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_fosc_of_a_linear_model_is_its_formula(norm: Norm) -> None:
    model, x, y = linear_case(classes=4)
    threat = ThreatModel(norm, Fraction(1, 50))
    attack = Chance()
    found = Fosc(batch_size=16, attack=attack)(model, x, y, threat, noise())
    points = threat.sample(x, noise().split("attack"))
    weight, bias = weights_of(model)

    def gap(at: Tensor) -> Array:
        logits = at.flatten(1).double().numpy() @ weight.T + bias
        shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        grad = (shares - np.eye(4)[y.numpy()]) @ weight
        moved = (at - x).flatten(1).double().numpy()
        values: Array = threat.radius * np.linalg.norm(grad, ord=DUAL[norm], axis=1) - (moved * grad).sum(1)
        return values

    for key, at in (("adversarial", points), ("clean", x)):
        values = gap(at)
        assert found[key]["mean"] == pytest.approx(values.mean(), rel=1e-4)
        assert found[key]["median"] == pytest.approx(np.median(values), rel=1e-4)
        assert found[key]["greatest"] == pytest.approx(values.max(), rel=1e-4)


def test_an_attack_that_has_converged_has_fosc_0() -> None:
    model, x, y = linear_case()
    found = Fosc(batch_size=250, attack=Fgsm())(model, x, y, THREAT, noise())
    assert found["adversarial"]["greatest"] == pytest.approx(0, abs=1e-6 * found["clean"]["greatest"] + 1e-7)
    assert found["clean"]["least"] > 1e-4
    assert Fosc(batch_size=250, attack=NoAttack())(model, x, y, THREAT, noise())["adversarial"] == found["clean"]


@dataclass(frozen=True)
class Checkered(Attack):
    """eps in every second pixel, half of it in the others."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        share = torch.ones(x[0].numel())
        share[::2] = 0.5
        return x + threat.radius * share.view_as(x[0])


def test_distortion_is_the_length_over_that_of_the_corner() -> None:
    model, x, y = linear_case()
    # On a linear model all steps of Frank-Wolfe point to one corner; at the border of the box they still do.
    for images in (x, torch.ones_like(x)):
        found = Distortion(batch_size=16)(model, images, y, THREAT, noise())
        assert [found["least"], found["greatest"]] == pytest.approx([1, 1])
    found = Distortion(batch_size=16, attack=Checkered())(model, x, y, THREAT, noise())
    assert found["mean"] == pytest.approx(np.sqrt((1 + 0.25) / 2), rel=1e-4)


class Bowl(nn.Module):
    """Logits 0 and s |x - c|^2: every gradient points from c or to it."""

    def __init__(self, height: float = 1.0) -> None:
        super().__init__()
        self.height = height

    def forward(self, x: Tensor) -> Tensor:
        rise = self.height * (x - 0.5).square().flatten(1).sum(1)
        return torch.stack([torch.zeros_like(rise), rise], 1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_alignment_is_the_cosine_of_the_two_gradients(norm: Norm) -> None:
    x, y = inner_images(), torch.arange(COUNT) % 2
    threat = ThreatModel(norm, Fraction(1, 10) if norm == "linf" else Fraction(1))
    found = GradientAlignment(points=2, batch_size=16)(Bowl(), x, y, threat, noise())
    cosines = []
    for number in range(2):
        beside = threat.sample(x, noise().split(f"point {number}"))
        one, other = ((at.double().numpy() - 0.5).reshape(COUNT, -1) for at in (x, beside))
        cosines.append((one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1))
    assert (found["pairs"], found["zero_gradients"]) == (2 * COUNT, 0)
    assert found["cosine"]["mean"] == pytest.approx(np.mean(cosines), rel=1e-4)
    assert found["cosine"]["least"] == pytest.approx(np.min(cosines), rel=1e-4)
    assert found["cosine"]["mean"] < 0.95


def test_gradients_of_two_linear_classes_are_aligned_however_small() -> None:
    model, x, y = linear_case()
    found = GradientAlignment()(model, x, y, THREAT, noise())
    assert found["cosine"]["least"] == pytest.approx(1, abs=1e-5)
    tiny = GradientAlignment()(Bowl(1e-30), x, y, ThreatModel("linf", Fraction(1, 1000)), noise())
    assert tiny["zero_gradients"] == 0
    assert tiny["cosine"]["mean"] > 0.99


def test_zero_gradients_are_counted_and_have_no_cosine() -> None:
    x = inner_images()
    found = GradientAlignment()(Bowl(0), x, torch.zeros(COUNT, dtype=torch.int64), THREAT, noise())
    assert (found["pairs"], found["zero_gradients"]) == (COUNT, COUNT)
    assert found["cosine"]["mean"] is None
    assert found["mean_with_zeros_as_1"] == 1


# Monitors of single-step training


def test_where_the_loss_is_linear_one_step_misses_nothing() -> None:
    model, x, y = linear_case()
    found = monitors(model, x, y, THREAT, noise(), steps=10, batch_size=16)
    assert found.pop("zero_gradients") == 0
    assert list(found.values()) == pytest.approx([1] * 4, abs=1e-5)


def test_monitors_tell_how_the_gradient_turns() -> None:
    """Around the bottom of a bowl, where gradients point away from it: against NumPy."""
    x, y, eps = inner_images(), torch.arange(COUNT) % 2, 0.2
    threat = ThreatModel("linf", Fraction(1, 5))
    found = monitors(Bowl(), x, y, threat, noise(), steps=10, batch_size=16)

    def cosine(one: Array, other: Array) -> Any:
        return np.mean((one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1))

    # The gradient is along x - 1/2, and against it in the class that is found at the bottom.
    sign = np.where(np.arange(COUNT) % 2, -1, 1)[:, None]
    at_image = sign * (x.double().numpy() - 0.5).reshape(COUNT, -1)
    eta = threat.noise(x, noise().split("beside")).double().numpy().reshape(COUNT, -1)
    assert found["alignment"] == pytest.approx(cosine(at_image, at_image + sign * eta), rel=1e-4)
    delta = Pgd(steps=10)(Bowl(), x, y, threat, noise().split("pgd")).sub(x).double().numpy().reshape(COUNT, -1)
    assert found["fgsm_pgd_cosine"] == pytest.approx(cosine(np.sign(at_image), delta), rel=1e-4)
    assert found["pgd_distortion"] == pytest.approx(np.mean(np.linalg.norm(delta, axis=1)) / (eps * 8), rel=1e-4)
    second = np.sign(at_image + sign * eps * np.sign(at_image))
    by_two = (np.sign(at_image) + 2 * second) / 3
    assert found["fw2_distortion"] == pytest.approx(np.mean(np.linalg.norm(by_two, axis=1)) / 8, rel=1e-4)
    assert found["fw2_distortion"] < 0.99
    assert found["alignment"] < 0.9


def test_a_zero_gradient_counts_as_aligned_and_is_reported() -> None:
    x = inner_images()
    found = monitors(Bowl(0), x, torch.zeros(COUNT, dtype=torch.int64), THREAT, noise(), steps=2, batch_size=60)
    assert (found["alignment"], found["zero_gradients"], found["fgsm_pgd_cosine"]) == (1, 1, 1)
    # PGD stays at its start, uniform in the cube.
    assert found["pgd_distortion"] == pytest.approx(3**-0.5, abs=0.02)


def scores(logits: Array, y: Array, bins: int) -> dict[str, float]:
    """ECE, NLL and Brier score as their definitions say, image by image."""
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    confidence, right = shares.max(1), shares.argmax(1) == y
    ece = 0.0
    for number in range(bins):
        inside = (confidence > number / bins) & (confidence <= (number + 1) / bins)
        if inside.any():
            ece += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    rows = np.arange(len(y))
    return {
        "accuracy": float(right.mean()),
        "confidence": float(confidence.mean()),
        "ece": float(ece),
        "nll": float(-np.log(shares[rows, y]).mean()),
        "brier": float(((shares - np.eye(shares.shape[1])[y]) ** 2).sum(1).mean()),
    }


@pytest.mark.parametrize("bins", [1, 15])
def test_calibration_is_its_definition_in_numpy(bins: int) -> None:
    model, x, y = linear_case(classes=5)
    with torch.no_grad():
        model[1].weight *= 6  # type: ignore[index]
    found = Calibration(bins=bins, batch_size=16, attack=Fgsm())(model, x, y, THREAT, noise())
    weight, bias = weights_of(model)
    points = Fgsm()(model, x, y, THREAT, noise())
    for row, at in zip(found["rows"], (x, points), strict=True):
        expected = scores(at.flatten(1).double().numpy() @ weight.T + bias, y.numpy(), bins)
        assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-4)
    assert [row["images"] for row in found["rows"]] == ["clean", "adversarial"]
    assert found["rows"][1]["nll"] > found["rows"][0]["nll"]


def test_perfect_confidence_lies_in_the_last_bin() -> None:
    class Sure(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([0.0, 1e4]).repeat(len(x), 1) + 0 * x.flatten(1)[:, :1]

    y = (torch.arange(COUNT) % 4 > 0).long()
    found = Calibration(bins=15, batch_size=250, attack=NoAttack())(Sure(), inner_images(), y, THREAT, noise())
    assert found["rows"][0]["ece"] == pytest.approx(0.25)


def test_bins_are_closed_above() -> None:
    class Halves(nn.Module):
        """Confidence 0.5 in the first class, or 0.9 in the second."""

        def forward(self, x: Tensor) -> Tensor:
            is_even = (torch.arange(len(x)) % 2 == 0)[:, None]
            return torch.where(is_even, torch.zeros(2), torch.tensor([0.1, 0.9]).log()) + 0 * x.flatten(1)[:, :1]

    y = torch.zeros(COUNT, dtype=torch.int64)
    found = Calibration(bins=2, batch_size=250, attack=NoAttack())(Halves(), inner_images(), y, THREAT, noise())
    # Right with 0.5 and wrong with 0.9, in bins of their own.
    assert found["rows"][0]["ece"] == pytest.approx((0.5 + 0.9) / 2)


@dataclass(frozen=True)
class WritesIntoItsInput(Attack):
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        return x.add_(threat.radius)


def test_an_attack_may_write_into_its_input_but_not_leave_the_threat_set() -> None:
    model, x, y = linear_case()
    given = x.clone()
    points = attacked(WritesIntoItsInput(), model, x, y, THREAT, noise(), 16)
    assert torch.equal(x, given)
    assert torch.allclose(points, x + 0.01)
    with pytest.raises(EvaluationError, match=r"attack WritesIntoItsInput: .* lie outside the threat set"):
        attacked(WritesIntoItsInput(), model, x + 0.6, y, THREAT, noise(), 16)


def test_logits_that_are_not_finite_are_refused() -> None:
    model, x, _ = linear_case()
    with torch.no_grad():
        logits = model(x)
    assert torch.allclose(logits_of(model, x, 16), logits, atol=1e-6)
    x[17:19] = torch.nan
    with pytest.raises(EvaluationError, match="not finite on 2 of 16 images"):
        logits_of(model, x, 16)


def test_a_summary_is_numpys() -> None:
    with drawn_from(0):
        values = torch.randn(37)
    found = summary(values)
    array = values.double().numpy()
    assert found["mean"] == pytest.approx(array.mean())
    for name, share in (("least", 0), ("q05", 0.05), ("q25", 0.25), ("median", 0.5), ("q95", 0.95), ("greatest", 1)):
        assert found[name] == pytest.approx(np.quantile(array, share))
    assert set(summary(values[:0]).values()) == {None}
