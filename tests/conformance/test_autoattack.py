"""AutoAttack against answers known without it: closed form on a linear model, recorded flags on a small net.

Weights and images are values of sines, so that anyone can rebuild them without a download.
"""

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from robustcli.evaluation.evaluate import evaluate
from robustcli.evaluators.autoattack import AutoAttack
from robustcli.registry.types import Norm
from robustcli.threat.threat import ThreatModel


def waves(count: int, slope: float, bend: float) -> Tensor:
    i = torch.arange(count, dtype=torch.float64)
    return torch.sin(slope * i + bend * torch.sqrt(i + 1))


class Linear(nn.Module):
    """z = W (x - 1/2) + b on 1x8x8 images, with mean logits of zero over its images."""

    def __init__(self) -> None:
        super().__init__()
        images = 0.5 + 0.2 * waves(6400, 0.9, 0.37).view(100, 1, 8, 8)
        self.weight = nn.Parameter(waves(640, 1.7, 0.3).view(10, 64))
        self.bias = nn.Parameter(-((images.flatten(1) - 0.5) @ self.weight.detach().T).mean(0))
        self.images = images

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - 0.5) @ self.weight.T + self.bias


class SmallNet(nn.Module):
    """Two convolutions and a linear layer on 3x8x8 images."""

    def __init__(self) -> None:
        super().__init__()
        self.images = 0.5 + 0.4 * waves(12288, 0.9, 0.37).view(64, 3, 8, 8)
        self.first = nn.Conv2d(3, 16, 3, padding=1).double()
        self.second = nn.Conv2d(16, 16, 3, stride=2, padding=1).double()
        self.last = nn.Linear(256, 10).double()
        values = {
            self.first: (waves(432, 1.7, 0.3) * 2 / math.sqrt(27), waves(16, 2.2, 0.8)),
            self.second: (waves(2304, 2.3, 0.7) * 2 / math.sqrt(144), waves(16, 2.8, 1.2)),
            self.last: (waves(2560, 3.1, 1.1) * 2 / math.sqrt(256), waves(10, 3.6, 1.6)),
        }
        with torch.no_grad():
            for layer, (weight, bias) in values.items():
                layer.weight.copy_(weight.view_as(layer.weight))
                layer.bias.copy_(0.1 * bias)
            self.last.bias -= self(self.images).mean(0)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.second(self.first(2 * x - 1).relu()).relu().flatten(1))
        return logits


def labels(model: Linear | SmallNet) -> Tensor:
    with torch.no_grad():
        return model(model.images).argmax(1)


def survivors(model: Linear | SmallNet, norm: Norm, eps: str) -> str:
    y = labels(model)
    model = model.float().eval()
    result = evaluate(
        "autoattack", {}, AutoAttack(), model, model.images.float(), y, ThreatModel(norm, Fraction(eps)), 0
    )
    assert result.warnings == []
    return result.survivors


@pytest.mark.parametrize(
    ("norm", "dual", "eps", "count"),
    [
        ("linf", 1, "0.001275", 30),
        pytest.param("l2", 2, "0.007287", 39, marks=pytest.mark.slow),
        pytest.param("l1", math.inf, "0.028399", 39, marks=pytest.mark.slow),
    ],
)
def test_linear_model_is_broken_exactly_where_its_margin_ends(norm: Norm, dual: float, eps: str, count: int) -> None:
    model = Linear()
    with torch.no_grad():
        logits, y = model(model.images), labels(model)
        gaps = logits.gather(1, y[:, None]) - logits
        reach = torch.linalg.vector_norm(model.weight[None] - model.weight[y][:, None], ord=dual, dim=2)
        # The box is far away at these radii, so the nearest boundary is that of a linear function.
        radius = (gaps / reach).scatter(1, y[:, None], torch.inf).amin(1)
    expected = "".join("1" if r > float(eps) else "0" for r in radius.tolist())
    assert expected.count("1") == count
    assert survivors(model, norm, eps) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("norm", "eps", "flags"),
    [
        ("linf", "0.001", "0110000101111101010000110110001001110100100000101010110000010110"),
        ("l2", "0.01", "0110000101111101010010110110001001110100100000101010110000010110"),
        ("l1", "0.06", "0010000101111101010000110110001001100100100000101010110000010110"),
    ],
)
def test_small_net_keeps_the_recorded_survivors(norm: Norm, eps: str, flags: str) -> None:
    """Flags of the package called by hand, equal over two seeds and two batch sizes on a CPU."""
    model = SmallNet()
    assert float(model.images.sum()) == pytest.approx(6144.784970, abs=1e-5)
    assert survivors(model, norm, eps) == flags
