"""AutoAttack against a closed form on a linear model and recorded flags on a small network."""

import math
from fractions import Fraction

import pytest
import torch
from sine_networks import SineConv, SineLinear, labeled

from robustcli.evaluation.evaluate import evaluate
from robustcli.evaluators.autoattack import AutoAttack
from robustcli.registry.types import Norm
from robustcli.threat.threat import ThreatModel

pytestmark = pytest.mark.slow


def survivors(model: SineLinear | SineConv, norm: Norm, eps: str) -> str:
    result = evaluate("autoattack", {}, AutoAttack(), *labeled(model), ThreatModel(norm, Fraction(eps)), 0)
    assert result.warnings == []
    return result.survivors


@pytest.mark.parametrize(
    ("norm", "dual", "eps", "count"),
    [
        ("linf", 1, "0.001275", 30),
        pytest.param("l2", 2, "0.007287", 39, marks=pytest.mark.full),
        ("l1", math.inf, "0.028399", 39),
    ],
)
def test_linear_model_is_broken_exactly_where_its_margin_ends(norm: Norm, dual: float, eps: str, count: int) -> None:
    model = SineLinear()
    with torch.no_grad():
        logits = model(model.images)
        y = logits.argmax(1)
        gaps = logits.gather(1, y[:, None]) - logits
        reach = torch.linalg.vector_norm(model.weight[None] - model.weight[y][:, None], ord=dual, dim=2)
        # The box is far away at these radii, so the nearest boundary is that of a linear function.
        radius = (gaps / reach).scatter(1, y[:, None], torch.inf).amin(1)
    expected = "".join("1" if r > float(eps) else "0" for r in radius.tolist())
    assert expected.count("1") == count
    assert survivors(model, norm, eps) == expected


@pytest.mark.parametrize(
    ("norm", "eps", "flags"),
    [
        pytest.param(
            "linf", "0.001", "0110000101111101010000110110001001110100100000101010110000010110", marks=pytest.mark.full
        ),
        ("l2", "0.01", "0110000101111101010010110110001001110100100000101010110000010110"),
        pytest.param(
            "l1", "0.06", "0010000101111101010000110110001001100100100000101010110000010110", marks=pytest.mark.full
        ),
        pytest.param(
            "linf", "0.002", "0010000000111000000000100000001001100100000000100000010000000010", marks=pytest.mark.full
        ),
        pytest.param(
            "l2", "0.02", "0010000001111000000000100000001001100100000000100000010000000010", marks=pytest.mark.full
        ),
        pytest.param(
            "l1", "0.12", "0010000000111000000000000000001001000100000000100000010000000010", marks=pytest.mark.full
        ),
    ],
)
def test_small_net_keeps_the_recorded_survivors(norm: Norm, eps: str, flags: str) -> None:
    """Flags of the package called directly; equal for two seeds and two batch sizes on a CPU."""
    model = SineConv()
    assert float(model.images.sum()) == pytest.approx(6144.784970, abs=1e-5)
    assert survivors(model, norm, eps) == flags
