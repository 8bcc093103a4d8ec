"""Norms of layers against their matrices, built column by column."""

from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustcli.architectures import Network, Normalize
from robustcli.architectures.convnorm import PreconditionedConv2d
from robustcli.architectures.convolutions import SameConv2d
from robustcli.architectures.downsampling import SpectralPool
from robustcli.architectures.induced_norms import dense_matrix, map_of, output_count, row_and_column_sums, taps_of_norm
from robustcli.architectures.plain import LargestPixel
from robustcli.contracts.networks import drawn_from
from robustcli.diagnostics.layer_norms import LayerNorms
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel


def looked_at(model: nn.Module, x: Tensor, iterations: int = 2000, *, by: str = "matrix") -> dict[str, Any]:
    y = torch.zeros(len(x), dtype=torch.int64)
    noise = IndexedNoise(0, torch.arange(len(x)))
    norms = LayerNorms(iterations=iterations, spectral="by_size" if by == "matrix" else "iterated")
    return norms(model.eval(), x, y, ThreatModel("linf", Fraction(1, 100)), noise)


def matrix(layer: nn.Module, shape: tuple[int, ...]) -> NDArray[Any]:
    """The matrix of the layer without bias, one unit vector after the other."""
    count = int(np.prod(shape))
    with torch.no_grad():
        shift = layer(torch.zeros(1, *shape, dtype=torch.float64))
        columns = layer(torch.eye(count, dtype=torch.float64).view(count, *shape)) - shift
    return columns.flatten(1).T.numpy()


LAYERS = [
    (nn.Linear(7, 5), (7,)),
    (nn.Conv2d(2, 3, 3, padding=1), (2, 6, 5)),
    (nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False), (2, 6, 5)),
    (nn.Conv2d(2, 3, 3, stride=3), (2, 7, 7)),
    (nn.Conv2d(2, 3, 1, stride=2), (2, 6, 6)),
    (nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2), (4, 6, 6)),
    (nn.Conv2d(2, 3, (3, 5), padding="same"), (2, 5, 5)),
    # Larger than its images: most taps meet only zeros.
    (nn.Conv2d(2, 3, 5, padding=2), (2, 2, 2)),
    (SameConv2d(2, 3, 3, 2, bias=True), (2, 6, 6)),
    (nn.Conv3d(2, 3, 3, stride=2, padding=1), (2, 3, 4, 5)),
]


@pytest.mark.parametrize(
    ("layer", "shape"), LAYERS, ids=lambda value: str(value) if isinstance(value, nn.Module) else ""
)
@pytest.mark.parametrize("by", ["matrix", "iteration"])
def test_norms_are_those_of_the_matrix(layer: nn.Module, shape: tuple[int, ...], by: str) -> None:
    with drawn_from(4):
        layer.reset_parameters()  # type: ignore[operator]
    layer = layer.double()
    (row,) = looked_at(layer, torch.rand(2, *shape, dtype=torch.float64), by=by)["rows"]
    dense = matrix(layer, shape)
    assert row["spectral_by"] == by
    assert row["l1"] == pytest.approx(np.linalg.norm(dense, ord=1), rel=1e-12)
    assert row["linf"] == pytest.approx(np.linalg.norm(dense, ord=np.inf), rel=1e-12)
    assert row["spectral"] == pytest.approx(np.linalg.norm(dense, ord=2), rel=1e-6)


GRID = [
    case
    for case in product((1, 2, 3), (1, 2, 3), (0, 1, 2), (1, 2), (1, 2), ((5, 5), (3, 4), (2, 1), (7, 3)))
    # A kernel that does not fit its padded image is refused by torch.
    if all(side + 2 * case[2] > case[4] * (case[0] - 1) for side in case[5])
]


@pytest.mark.slow
def test_exact_norms_hold_for_every_geometry() -> None:
    """Kernels, strides, paddings, dilations and groups at once, on images as small as they are."""
    assert len(GRID) > 200
    with drawn_from(5):
        for kernel, stride, padding, groups, dilation, sides in GRID:
            layer = nn.Conv2d(4, 6, kernel, stride, padding, dilation, groups).double()
            size = (4, *sides)
            dense = matrix(layer, size)
            apply, weight = map_of(layer), layer.weight.detach()
            rows, columns = row_and_column_sums(apply, size, weight.abs())
            np.testing.assert_allclose(rows.flatten().numpy(), np.abs(dense).sum(1), rtol=1e-10)
            np.testing.assert_allclose(columns.flatten().numpy(), np.abs(dense).sum(0), rtol=1e-10, atol=1e-15)
            np.testing.assert_allclose(dense_matrix(apply, size, weight).numpy(), dense, rtol=1e-10, atol=1e-14)
            assert output_count(layer, size) == len(dense)
            for norm, order in (("l1", 1), ("linf", np.inf)):
                largest, taps = taps_of_norm(layer, size, norm)
                assert float(largest) == pytest.approx(np.linalg.norm(dense, ord=order))
                assert float(weight.abs()[taps].sum()) == pytest.approx(float(largest))


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_large_images_have_the_norms_of_the_kernel(stride: int) -> None:
    """Away from the border: all taps of an output; of an input, the taps that share a position modulo the stride."""
    with drawn_from(0):
        layer = nn.Conv2d(3, 4, 3, stride=stride, padding=1, bias=False)
    (row,) = looked_at(layer, torch.rand(1, 3, 19, 19), 3)["rows"]
    size = layer.weight.detach().abs().double().numpy()
    assert row["linf"] == pytest.approx(size.sum((1, 2, 3)).max(), rel=1e-5)
    taps = [size[:, :, i::stride, j::stride].sum((0, 2, 3)) for i in range(stride) for j in range(stride)]
    assert row["l1"] == pytest.approx(np.max(taps), rel=1e-5)


def test_batch_norms_and_normalization_scale_channels() -> None:
    norm = nn.BatchNorm2d(3).double()
    assert norm.running_var is not None
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -4.0, 2.0]))
        norm.running_var.copy_(torch.tensor([1.0, 4.0, 0.25]))
    model = Network(Normalize((0.5,) * 3, (0.5, 0.25, 1.0)), nn.Sequential(norm, nn.BatchNorm2d(3, affine=False)))
    first, second, third = looked_at(model.double(), torch.rand(2, 3, 4, 4, dtype=torch.float64))["rows"]
    for key in ("l1", "linf", "spectral"):
        assert first[key] == 4
        assert second[key] == pytest.approx(max(4 / (4 + 1e-5) ** 0.5, 2 / (0.25 + 1e-5) ** 0.5))
        assert third[key] == pytest.approx(1, abs=1e-5)


class Twice(nn.Module):
    """A layer that is used at two sizes, one that is not used, and weights outside of layers."""

    def __init__(self, has_own: bool = False) -> None:
        super().__init__()
        self.shared = nn.Conv2d(1, 1, 3, padding=1, bias=False)
        self.idle = nn.Linear(3, 3)
        if has_own:
            self.own = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(self.shared(x[..., ::2, ::2]).repeat(1, 1, 2, 2)).flatten(1)


def test_a_product_has_a_factor_for_every_call() -> None:
    with drawn_from(2):
        model = Twice().double()
    found = looked_at(model, torch.rand(1, 1, 6, 6, dtype=torch.float64))
    (row,) = found["rows"]
    assert (row["layer"], row["calls"], found["others"]) == ("shared", 2, [])
    norms = [np.linalg.norm(matrix(model.shared, (1, side, side)), ord=2) for side in (6, 3)]
    assert norms[0] != pytest.approx(norms[1], rel=1e-3)
    assert row["spectral"] == pytest.approx(max(norms), rel=1e-6)
    assert found["products"] == pytest.approx({key: row[key] ** 2 for key in ("l1", "linf", "spectral")})


class Doubling(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize(
    ("model", "other"),
    [
        (Twice(has_own=True), " (Twice)"),
        (nn.Sequential(nn.Flatten(), Doubling(36, 2)), "1 (Doubling)"),
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), " (Conv2d)"),
        (nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False)), "0 (BatchNorm2d)"),
        (nn.LayerNorm(6), " (LayerNorm)"),
        # As a whole, and not as the convolutions inside.
        (nn.Sequential(PreconditionedConv2d(1, 2, 3, 1, 1)), "0 (PreconditionedConv2d)"),
        (PreconditionedConv2d(1, 2, 1, 2, 1), " (PreconditionedConv2d)"),
        # Lengthen differences without weights: in linf up to 2.1 times, and in l2 twice.
        (nn.Sequential(nn.Conv2d(1, 1, 1), SpectralPool(windowed=False)), "1 (SpectralPool)"),
        (nn.Sequential(nn.Upsample(scale_factor=2)), "0 (Upsample)"),
        (nn.Sequential(nn.Conv2d(1, 2, 1), nn.GroupNorm(1, 2, affine=False)), "1 (GroupNorm)"),
        (nn.Sequential(nn.InstanceNorm2d(1)), "0 (InstanceNorm2d)"),
        (nn.Sequential(nn.SiLU()), "0 (SiLU)"),
        (nn.Sequential(nn.MaxPool2d(3, 2)), "0 (MaxPool2d)"),
        (nn.Sequential(LargestPixel(1)), "0 (LargestPixel)"),
    ],
)
def test_without_a_norm_for_every_layer_there_is_no_product(model: nn.Module, other: str) -> None:
    found = looked_at(model, torch.rand(1, 1, 6, 6), 2)
    assert found["others"] == [other]
    assert set(found["products"].values()) == {None}


def test_max_pools_that_do_not_overlap_have_norm_1() -> None:
    found = looked_at(
        nn.Sequential(nn.MaxPool2d(2), LargestPixel(2), nn.MaxPool2d((1, 2), (2, 2))), torch.rand(1, 1, 8, 8)
    )
    assert found["others"] == []
    assert found["products"] == {"l1": 1, "linf": 1, "spectral": 1}


def test_the_product_bounds_what_the_logits_do() -> None:
    with drawn_from(1):
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)
        ).double()
    x = torch.rand(20, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    products = looked_at(model, x)["products"]
    with torch.no_grad():
        moved, logits = x[:10] - x[10:], model(x)[:10] - model(x)[10:]
    for key, order in (("l1", 1), ("linf", torch.inf), ("spectral", 2)):
        ratios = torch.linalg.vector_norm(logits, order, 1) / torch.linalg.vector_norm(moved.flatten(1), order, 1)
        assert 0 < float(ratios.max()) <= products[key]


def test_a_product_beyond_all_numbers_is_left_out() -> None:
    large = nn.Linear(2, 2)
    nn.init.constant_(large.weight, 1e38)
    found = looked_at(nn.Sequential(*[large] * 10), torch.zeros(1, 2), 2)
    assert found["products"] == {"l1": None, "linf": None, "spectral": None}
    assert [found["rows"][0][key] for key in ("l1", "linf", "spectral")] == pytest.approx([2e38] * 3)


def test_a_layer_of_zeros_has_norm_0() -> None:
    layer = nn.Linear(3, 2)
    nn.init.zeros_(layer.weight)
    (row,) = looked_at(layer, torch.rand(1, 3))["rows"]
    assert [row[key] for key in ("l1", "linf", "spectral")] == [0, 0, 0]


def test_parametrized_weights_count_as_they_are_used() -> None:
    with drawn_from(0):
        layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)).double()
    found = looked_at(layer, torch.rand(2, 4, dtype=torch.float64))
    assert found["rows"][0]["spectral"] == pytest.approx(np.linalg.norm(matrix(layer, (4,)), ord=2), rel=1e-6)
    assert found["others"] == []
