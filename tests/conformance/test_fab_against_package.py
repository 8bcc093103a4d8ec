"""FAB against closed forms and against pyautoattack; neither is random, so the verdicts agree."""

import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from judging import standing
from robust_digits import EPS, robust_network, survivors_of_package
from sine_networks import SineConv, SineLinear, labeled
from torch import Tensor, nn

from robustcli.attacks.fab import Fab, fab_t
from robustcli.evaluators.attack import Attacked
from robustcli.registry.types import Norm
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel

pytestmark = pytest.mark.slow

NORMS: list[Norm] = ["linf", "l2", "l1"]
DUAL = {"linf": 1.0, "l2": 2.0, "l1": math.inf}
ATTACKS = {"fab-t": fab_t(), "fab": Fab()}
# Images that are attacked in batches of several sizes.
COUNT = 16

of_both_forms = pytest.mark.parametrize("name", ATTACKS)


def survivors(attack: Fab, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
    return standing(Attacked(attack=attack), model, x, y, threat, IndexedNoise(0, torch.arange(len(x))))


def assert_same_verdicts(
    name: str, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, steps: int = 100
) -> None:
    """Flags must agree except where the distance is the radius up to rounding; the message lists the others."""
    attack = replace(ATTACKS[name], steps=steps)
    ours = survivors(attack, model, x, y, threat)
    differ = (ours != survivors_of_package(name, model, x, y, threat, steps=steps)).nonzero().flatten()
    assert 0 < ours.sum() < len(x), "a test of both verdicts"
    if len(differ):
        # With ten times the radius, so that distances are found on both sides.
        wide = ThreatModel(threat.norm, min(10 * threat.eps, Fraction(1)) if threat.norm == "linf" else 10 * threat.eps)
        nearest = replace(attack, keep="nearest")
        found = nearest(model, x[differ], y[differ], wide, IndexedNoise(0, differ))
        distances = wide.size(found - x[differ]) / threat.radius
        listed = dict(zip(differ.tolist(), distances.tolist(), strict=True))
        assert ((distances - 1).abs() < 1e-4).all(), f"distances in radii of images with other verdicts: {listed}"
        assert len(differ) <= 0.005 * len(x), f"too many for rounding: {listed}"


@pytest.mark.parametrize(
    ("norm", "eps", "robust"), [("linf", "0.001275", 30), ("l2", "0.007287", 39), ("l1", "0.028399", 39)]
)
def test_ten_linear_classes_are_broken_exactly_where_their_margin_ends(norm: Norm, eps: str, robust: int) -> None:
    model = SineLinear()
    with torch.no_grad():
        logits = model(model.images)
        y = logits.argmax(1)
        reach = torch.linalg.vector_norm(model.weight[y][:, None] - model.weight[None], ord=DUAL[norm], dim=2)
        radii = ((logits.gather(1, y[:, None]) - logits) / reach).scatter(1, y[:, None], torch.inf).amin(1)
    expected = radii > float(eps)
    assert int(expected.sum()) == robust
    single, x, y = labeled(model)
    for attack in ATTACKS.values():
        assert torch.equal(survivors(attack, single, x, y, ThreatModel(norm, Fraction(eps))), expected)


RADII: dict[Norm, tuple[str, str]] = {"linf": ("0.002", "0.001"), "l2": ("0.02", "0.01"), "l1": ("0.12", "0.06")}
# Below, the robust net is attacked by fab-t in linf.
SHOWN = {("fab", "linf", "0.002"), ("fab-t", "l2", "0.02"), ("fab-t", "l1", "0.12")}


@pytest.mark.parametrize(
    ("name", "norm", "eps"),
    [
        pytest.param(*case, marks=[] if case in SHOWN else pytest.mark.full)
        for case in ((name, norm, eps) for name in ATTACKS for norm, radii in RADII.items() for eps in radii)
    ],
)
def test_a_small_net_gets_the_verdicts_of_the_package(name: str, norm: Norm, eps: str) -> None:
    assert_same_verdicts(name, *labeled(SineConv()), ThreatModel(norm, Fraction(eps)), steps=30)


def test_a_robust_net_gets_the_verdicts_of_the_package() -> None:
    model, x, y = robust_network()
    assert_same_verdicts("fab-t", model, x[:60], y[:60], ThreatModel("linf", Fraction(EPS["linf"])))


@pytest.mark.full
@pytest.mark.parametrize("norm", NORMS)
@of_both_forms
def test_all_images_of_a_robust_net_get_the_verdicts_of_the_package(name: str, norm: Norm) -> None:
    model, x, y = robust_network()
    assert len(x) >= 500
    assert_same_verdicts(name, model, x, y, ThreatModel(norm, Fraction(EPS[norm])))


@pytest.mark.parametrize("norm", NORMS)
def test_survivors_do_not_depend_on_batches(norm: Norm) -> None:
    model, x, y = labeled(SineConv())
    x, y = x[:COUNT], y[:COUNT]
    threat = ThreatModel(norm, Fraction(RADII[norm][1]))
    found = [
        standing(
            Attacked(attack=Fab(steps=20, targets=3), batch_size=size),
            model,
            x,
            y,
            threat,
            IndexedNoise(0, torch.arange(COUNT)),
        )
        for size in (1, 7, COUNT)
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("norm", NORMS)
def test_points_do_not_depend_on_the_targets_that_share_a_pass(norm: Norm) -> None:
    """A later target that breaks an image sooner does not end the attempts of earlier ones."""
    model, x, y = labeled(SineConv())
    threat = ThreatModel(norm, Fraction(RADII[norm][1]))
    alone, beside = (
        fab_t(steps=20, batch_size=size)(model, x, y, threat, IndexedNoise(0, torch.arange(len(x))))
        for size in (len(x), 9 * len(x))
    )
    assert torch.allclose(alone, beside, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("norm", "median", "first"),
    [
        ("linf", 0.000749, [0.000450, 0.000995, 0.002207, 0.000287, 0.000458]),
        ("l2", 0.005077, [0.003219, 0.007057, 0.015022, 0.001810, 0.003250]),
        ("l1", 0.021892, [0.017413, 0.034222, 0.065238, 0.006301, 0.015761]),
    ],
)
def test_distances_to_ten_linear_classes_are_exact(norm: Norm, median: float, first: list[float]) -> None:
    model, x, y = labeled(SineLinear())
    threat = ThreatModel(norm, Fraction(1, 2))
    found = Fab(steps=10, keep="nearest", final_search=3)(model, x, y, threat, IndexedNoise(0, torch.arange(len(x))))
    with torch.no_grad():
        assert (model(found).argmax(1) != y).all()
    distances = threat.size(found - x)
    # One step beyond a plane, and the search along the line ends slightly beyond it, too.
    assert distances.quantile(0.5).item() == pytest.approx(median, rel=2e-3)
    assert distances[:5].tolist() == pytest.approx(first, rel=4e-3)


@pytest.mark.parametrize(
    ("norm", "median", "first"),
    [
        ("linf", 0.000849, [0.000053, 0.001022, 0.002958, 0.000826]),
        ("l2", 0.009387, [0.000594, 0.011506, 0.032132, 0.009112]),
    ],
)
def test_distances_of_a_small_net_are_those_of_the_package(norm: Norm, median: float, first: list[float]) -> None:
    """Recorded from the package, without restarts."""
    model, x, y = labeled(SineConv())
    threat = ThreatModel(norm, Fraction(1, 2))
    found = Fab(keep="nearest")(model, x, y, threat, IndexedNoise(0, torch.arange(len(x))))
    distances = threat.size(found - x)
    assert distances.quantile(0.5).item() == pytest.approx(median, rel=1e-3)
    assert distances[:4].tolist() == pytest.approx(first, abs=1e-6, rel=1e-3)
