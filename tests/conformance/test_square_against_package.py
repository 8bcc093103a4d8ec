"""Square against closed forms and pyautoattack; random numbers differ, so robust accuracy is compared."""

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from judging import standing
from products import products
from robust_digits import EPS, robust_network, survivors_of_package
from sine_networks import SineLinear, labeled
from torch import Tensor, nn

from robustcli.attacks.square import Square
from robustcli.evaluators import chunks
from robustcli.evaluators.attack import Attacked
from robustcli.registry.types import Norm
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel

pytestmark = pytest.mark.slow

NORMS: list[Norm] = ["linf", "l2", "l1"]
DUAL = {"linf": 1.0, "l2": 2.0, "l1": math.inf}


def survivors(attack: Square, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
    return standing(Attacked(attack=attack), model, x, y, threat, IndexedNoise(0, torch.arange(len(x))))


@pytest.mark.parametrize(("norm", "eps"), [("linf", "0.001275"), ("l2", "0.007287"), ("l1", "0.028399")])
def test_ten_linear_classes_are_not_broken_beyond_their_margin(norm: Norm, eps: str) -> None:
    model = SineLinear()
    with torch.no_grad():
        logits = model(model.images)
        y = logits.argmax(1)
        reach = torch.linalg.vector_norm(model.weight[y][:, None] - model.weight[None], ord=DUAL[norm], dim=2)
        radii = ((logits.gather(1, y[:, None]) - logits) / reach).scatter(1, y[:, None], torch.inf).amin(1)
    single, x, y = labeled(model)
    threat = ThreatModel(norm, Fraction(eps))
    survives = survivors(Square(queries=500), single, x, y, threat)
    assert survives[radii > threat.radius * (1 + 1e-4)].all(), "broke what cannot be broken"
    assert survives.sum() <= survivors_of_package("square", single, x, y, threat, queries=500).sum()


@pytest.mark.parametrize(("norm", "schedule"), products(NORMS, ["fixed", "rescaled"], strength=1))
def test_a_robust_net_is_not_left_more_robust_than_by_the_package(norm: Norm, schedule: Any) -> None:
    model, x, y = robust_network()
    x, y, threat = x[:60], y[:60], ThreatModel(norm, Fraction(EPS[norm]))
    theirs = survivors_of_package("square", model, x, y, threat, queries=300)
    ours = survivors(Square(queries=300, schedule=schedule), model, x, y, threat)
    assert ours.sum() <= theirs.sum()


@pytest.mark.full
@pytest.mark.parametrize("norm", NORMS)
def test_with_its_full_budget_the_package_breaks_no_more(norm: Norm) -> None:
    """Up to 0.2 points of accuracy; on 8x8 pixels the package's windows miss a quarter of the image."""
    model, x, y = robust_network()
    assert len(x) >= 500
    threat = ThreatModel(norm, Fraction(EPS[norm]))
    theirs = survivors_of_package("square", model, x, y, threat)
    ours = survivors(Square(), model, x, y, threat)
    assert 0 < ours.sum() <= theirs.sum() + 0.002 * len(x)


@pytest.mark.parametrize("norm", ["linf", *(pytest.param(norm, marks=pytest.mark.full) for norm in ("l2", "l1"))])
def test_on_large_images_accuracy_is_that_of_the_package(norm: Norm) -> None:
    """Digits enlarged four times, so that the last row and column, which the package misses, hardly matter.

    The package draws the same windows for all images and batches, so small groups of images
    get different seeds. Otherwise its verdicts would not be independent, as the paired interval assumes.
    """
    network, x, y = robust_network()
    model = nn.Sequential(nn.AvgPool2d(4), network).eval()
    x = x.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert len(x) >= 500
    # The enlarged picture has 16 times as many pixels.
    threat = ThreatModel(norm, Fraction(EPS[norm]) * {"linf": 1, "l2": 4, "l1": 16}[norm])
    theirs = torch.cat(
        [
            survivors_of_package("square", model, x[part], y[part], threat, seed=part.start, queries=250)
            for part in chunks(len(x), 30)
        ]
    )
    ours = survivors(Square(queries=250, schedule="fixed"), model, x, y, threat)
    only_ours, only_theirs = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    assert abs(only_ours - only_theirs) <= 1.96 * math.sqrt(only_ours + only_theirs)
