"""Regularizers against dense matrices, difference quotients, and limits without effect."""

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from small_steps import LINF, batch, counted, labeled, progress, same, tracked, train
from test_layer_norms import LAYERS, matrix
from torch import Tensor, nn

from robustcli.architectures.convolutions import SameConv2d
from robustcli.architectures.induced_norms import taps_of_norm
from robustcli.contracts.networks import conv_net, drawn_from, images, labels
from robustcli.defenses.free import Free
from robustcli.defenses.fw_at_adapt import fw_at_adapt
from robustcli.defenses.grad_align import GradAlign
from robustcli.defenses.natural import natural
from robustcli.defenses.pgd_at import pgd_at
from robustcli.defenses.trades import trades
from robustcli.errors import RobustCliError, SpecError
from robustcli.optimization.regularizers import Regularizer
from robustcli.optimization.regularizers.grad_norm import GradNorm
from robustcli.optimization.regularizers.norm_decay import NormDecay
from robustcli.optimization.regularizers.svc import Svc, clipped
from robustcli.optimization.weights.awp import Awp
from robustcli.specs.spec import ExperimentSpec
from robustcli.threat.noise import StreamNoise

Norm = Literal["l1", "linf"]
BASES: dict[str, Any] = {
    "natural": natural(),
    "trades": trades(steps=2),
    "free": Free(replays=1),
    "grad_align": GradAlign(),
    "fw_at_adapt": fw_at_adapt(monitor_images=8),
}

# Limits.


@pytest.mark.parametrize("base", list(BASES))
@pytest.mark.parametrize(
    "off", [NormDecay(weight=0), GradNorm(weight=0), Svc(clip=1e6, every=1)], ids=lambda part: type(part).__name__
)
def test_a_regularizer_of_weight_0_changes_nothing(base: str, off: Regularizer) -> None:
    assert same(train(replace(BASES[base], regularizer=off), conv_net()), train(BASES[base], conv_net()))


@pytest.mark.parametrize("base", list(BASES))
@pytest.mark.parametrize(
    "on", [NormDecay(weight=0.01), GradNorm(), Svc(clip=0.5, every=1)], ids=lambda part: type(part).__name__
)
def test_every_method_takes_a_regularizer(base: str, on: Regularizer) -> None:
    assert not same(train(replace(BASES[base], regularizer=on), conv_net()), train(BASES[base], conv_net()))


def test_the_weights_of_the_loss_are_perturbed_and_those_of_the_penalty_are_not() -> None:
    """A large weight perturbation changes the gradient of the loss but not that of the penalty."""
    moves = {}
    for weights in (Awp(gamma=0), Awp(gamma=0.5)):
        plain = replace(natural(), weights=weights)
        without, together = (
            train(defense, conv_net(dtype=torch.float64), updates=1, lr=0.1, weight_decay=0)[0]
            for defense in (plain, replace(plain, regularizer=NormDecay(weight=0.1, memory=0)))
        )
        moves[weights] = together - without
    assert torch.allclose(*moves.values(), rtol=0, atol=1e-12)
    assert next(iter(moves.values())).abs().max() == pytest.approx(0.01)


# Norm decay.


@pytest.mark.parametrize("norm", ["l1", "linf"])
@pytest.mark.parametrize(
    ("layer", "shape"), LAYERS, ids=lambda value: str(value) if isinstance(value, nn.Module) else ""
)
def test_taps_sum_to_the_norm_of_the_matrix(layer: nn.Module, shape: tuple[int, ...], norm: Norm) -> None:
    with drawn_from(4):
        layer.reset_parameters()  # type: ignore[operator]
    layer = layer.double()
    weight = layer.weight
    assert isinstance(weight, Tensor)
    found, taps = taps_of_norm(layer, shape, norm)
    expected = np.linalg.norm(matrix(layer, shape), ord=1 if norm == "l1" else np.inf)
    assert float(found) == pytest.approx(expected, rel=1e-12)
    assert float(weight.detach().abs()[taps].sum()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("norm", ["l1", "linf"])
def test_the_norm_is_that_of_the_formula(kernel: int, stride: int, norm: Norm) -> None:
    """Which taps an output or an input meets, axis by axis, written out; padding, dilation, groups, small sides."""
    for padding in (0, 1, 2):
        for dilation in (1, 2):
            for groups in (1, 2):
                height, width = 6, 9
                if dilation * (kernel - 1) + 1 > height + 2 * padding:
                    continue
                with drawn_from(kernel):
                    layer = nn.Conv2d(
                        4, 6, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups, bias=False
                    ).double()
                size = layer.weight.detach().abs().numpy()
                sets = [_sets(side, kernel, stride, padding, dilation)[norm] for side in (height, width)]
                best = 0.0
                for rows in sets[0]:
                    for columns in sets[1]:
                        part = size[:, :, sorted(rows)][:, :, :, sorted(columns)].sum((2, 3))
                        if norm == "linf":
                            best = max(best, part.sum(1).max())
                        else:
                            best = max(best, part.reshape(groups, -1, 4 // groups).sum(1).max())
                found, _ = taps_of_norm(layer, (4, height, width), norm)
                assert float(found) == pytest.approx(best, rel=1e-12)


def _sets(side: int, kernel: int, stride: int, padding: int, dilation: int) -> dict[str, set[frozenset[int]]]:
    """Kernel positions that one output (linf) or one input (l1) meets along one axis."""
    outputs = (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    met = [
        (t, t * stride - padding + dilation * a, a)
        for t in range(outputs)
        for a in range(kernel)
        if 0 <= t * stride - padding + dilation * a < side
    ]
    return {
        "linf": {frozenset(a for t, _, a in met if t == output) for output in range(outputs)},
        "l1": {frozenset(a for _, u, a in met if u == point) for point in range(side)},
    }


def test_without_memory_the_penalty_is_the_weighted_sum_of_the_norms() -> None:
    model = conv_net(dtype=torch.float64).train()
    norms = [
        np.linalg.norm(matrix(layer, shape), ord=np.inf)
        for layer, shape in ((model[0], (1, 8, 8)), (model[3], (6, 8, 8)), (model[8], (128,)))  # type: ignore[index]
    ]
    running = NormDecay(weight=0.25, memory=0).start(model)
    penalty = running.penalty(model, *batch(dtype=torch.float64), progress())
    assert penalty is not None
    assert float(penalty.detach()) == pytest.approx(0.25 * sum(norms), rel=1e-12)


class Twice(nn.Module):
    """A convolution on a small and then on a large image, or in reverse order."""

    def __init__(self, is_small_first: bool) -> None:
        super().__init__()
        with drawn_from(3):
            self.shared = nn.Conv2d(1, 1, 5, padding=2, bias=False).double()
        self.is_small_first = is_small_first

    def forward(self, x: Tensor) -> Tensor:
        small, large = x[..., :2, :2], x
        first, second = (small, large) if self.is_small_first else (large, small)
        return self.shared(first).sum((2, 3)) + self.shared(second).sum((2, 3))


@pytest.mark.parametrize("is_small_first", [False, True])
def test_a_layer_at_two_sizes_has_the_larger_norm(is_small_first: bool) -> None:
    model = Twice(is_small_first)
    penalty = NormDecay(weight=1, memory=0).start(model).penalty(model, *batch(dtype=torch.float64), progress())
    assert penalty is not None
    small, large = (np.linalg.norm(matrix(model.shared, (1, side, side)), ord=np.inf) for side in (2, 8))
    assert small < large
    assert float(penalty.detach()) == pytest.approx(large, rel=1e-12)


def test_the_direction_remembers_half_of_the_last_one() -> None:
    layer = nn.Linear(3, 2, bias=False)
    model = nn.Sequential(nn.Flatten(), layer)
    running = NormDecay(weight=1).start(model)
    x, y = torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64)
    gradients = []
    # The first row is the largest, then the second; a weight of zero has no sign.
    for rows in ([[3.0, -1, 0], [1, 1, 1]], [[1.0, 1, 1], [-2, 2, 2]], [[1.0, 1, 1], [2, 2, 2]]):
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(rows))
        penalty = running.penalty(model, x, y, progress())
        assert penalty is not None
        gradients.append(torch.autograd.grad(penalty, layer.weight)[0].tolist())
    assert gradients == [
        [[1, -1, 0], [0, 0, 0]],
        [[0.5, -0.5, 0], [-1, 1, 1]],
        [[0.25, -0.25, 0], [1, 1, 1]],
    ]


def test_taps_are_copied_where_every_tap_is_a_class_of_its_own() -> None:
    """Kernel as large as the stride: a sign taken in place would overwrite the weights."""
    layer = nn.Conv2d(2, 3, 2, stride=2, bias=False)
    before = layer.weight.detach().clone()
    model = nn.Sequential(layer)
    running = NormDecay(weight=1, norm="l1").start(model)
    running.penalty(model, torch.rand(2, 2, 6, 6), labels(2), progress())
    assert torch.equal(layer.weight, before)


def test_norm_decay_makes_norms_smaller() -> None:
    for norm in ("l1", "linf"):
        settings = NormDecay(weight=0.05, norm=norm, memory=0)  # type: ignore[arg-type]
        model = conv_net()
        train(replace(natural(), regularizer=settings), model, updates=30)
        plain = conv_net()
        train(natural(), plain, updates=30)
        norms = [
            float(taps_of_norm(net[3], (6, 8, 8), norm)[0])  # type: ignore[arg-type, index]
            for net in (model, plain)
        ]
        assert norms[0] < 0.8 * norms[1]


# Singular value clipping.


def circular_values(weight: Tensor, side: int) -> NDArray[Any]:
    """Singular values of the dense matrix of a circular convolution, column by column."""
    _, inputs, kernel, _ = weight.shape
    eye = torch.eye(inputs * side * side, dtype=weight.dtype).view(-1, inputs, side, side)
    columns = F.conv2d(F.pad(eye, (0, kernel - 1, 0, kernel - 1), mode="circular"), weight)
    return np.linalg.svd(columns.flatten(1).T.numpy(), compute_uv=False)


@pytest.mark.parametrize(("kernel", "side"), [(1, 4), (3, 3), (4, 4)])
def test_a_kernel_as_large_as_its_image_is_clipped_exactly(kernel: int, side: int) -> None:
    """Nothing is cropped then; values below the limit stay what they were."""
    with drawn_from(0):
        layer = nn.Conv2d(3, 4, kernel, bias=False).double()
    before = circular_values(layer.weight.detach(), side)
    limit = float(np.median(before))
    after = circular_values(clipped(layer, (side, side), limit), side)
    assert np.sort(after) == pytest.approx(np.sort(np.minimum(before, limit)), rel=1e-9, abs=1e-12)


def test_a_cropped_kernel_comes_close() -> None:
    with drawn_from(0):
        layer = nn.Conv2d(3, 4, 3, padding=1, bias=False).double()
    before = circular_values(layer.weight.detach(), 8).max()
    for _ in range(20):
        with torch.no_grad():
            layer.weight.copy_(clipped(layer, (8, 8), 0.5 * before))
    assert 0.45 * before < circular_values(layer.weight.detach(), 8).max() < 0.55 * before


def test_groups_are_clipped_each_for_itself_and_dilation_spreads_the_taps() -> None:
    with drawn_from(0):
        layer = nn.Conv2d(4, 6, 3, groups=2, bias=False).double()
    parts = [nn.Conv2d(2, 3, 3, bias=False).double() for _ in range(2)]
    for part, weight in zip(parts, layer.weight.detach().chunk(2), strict=True):
        part.weight = nn.Parameter(weight.clone())
    alone = torch.cat([clipped(part, (5, 5), 0.3) for part in parts])
    assert torch.allclose(clipped(layer, (5, 5), 0.3), alone, rtol=0, atol=1e-12)
    with drawn_from(1):
        spread = nn.Conv2d(2, 3, 3, dilation=2, bias=False).double()
    plain = nn.Conv2d(2, 3, 5, bias=False).double()
    with torch.no_grad():
        plain.weight.zero_()
        plain.weight[:, :, ::2, ::2] = spread.weight
    found, expected = clipped(spread, (7, 7), 0.3), clipped(plain, (7, 7), 0.3)
    assert torch.allclose(found, expected[:, :, ::2, ::2], rtol=0, atol=1e-12)


def test_svc_projects_every_so_many_updates() -> None:
    base, settings = natural(), Svc(clip=0.5, every=3)
    clip = replace(base, regularizer=settings)
    assert same(train(clip, conv_net(), updates=2), train(base, conv_net(), updates=2))
    found, plain = train(clip, conv_net(), updates=3), train(base, conv_net(), updates=3)
    layer = nn.Conv2d(1, 6, 3, padding=1, bias=False)
    layer.weight = nn.Parameter(plain[0])
    assert torch.equal(found[0], clipped(layer, (8, 8), 0.5))
    assert not torch.equal(found[0], plain[0])


def test_weights_that_are_computed_cannot_be_clipped_and_can_decay() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 3, 3)))
    with pytest.raises(RobustCliError, match="the weight of 0 is computed from other parameters"):
        Svc().start(model)
    penalty = NormDecay().start(model).penalty(model, images(2), labels(2), progress())
    assert penalty is not None
    penalty.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if "original" in name)


@pytest.mark.parametrize("layer", [nn.Linear(4, 4), nn.Conv3d(1, 2, 3)])
def test_a_network_without_a_kernel_to_clip_is_refused(layer: nn.Module) -> None:
    with pytest.raises(RobustCliError, match="svc: this network has no convolution of images"):
        Svc().start(nn.Sequential(layer))


def test_an_asymmetric_convolution_is_seen_at_the_size_of_its_input() -> None:
    with drawn_from(0):
        model = nn.Sequential(SameConv2d(1, 3, 3, 2, bias=False))
    before = model[0].weight.detach().clone()
    running = Svc(clip=0.1, every=1).start(model)
    running.penalty(model, images(2), labels(2), progress())
    running.after(model, progress())
    layer = nn.Conv2d(1, 3, 3)
    layer.weight = nn.Parameter(before)
    assert torch.equal(model[0].weight, clipped(layer, (8, 8), 0.1))


# Input gradients.


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_grad_norm_is_the_size_of_the_gradient_and_its_slope_the_difference_quotient(
    norm: Literal["l2", "l1"],
) -> None:
    model = conv_net(dtype=torch.float64).train()
    x, y = batch(dtype=torch.float64)
    running = GradNorm(weight=0.5, norm=norm).start(model)

    def value() -> Tensor:
        penalty = running.penalty(model, x, y, progress())
        assert penalty is not None
        return penalty

    points = x.clone().requires_grad_()
    before = tracked(model)
    (grad,) = torch.autograd.grad(F.cross_entropy(model(points), y, reduction="sum"), points)
    sizes = grad.flatten(1).norm(dim=1).square() if norm == "l2" else grad.flatten(1).abs().sum(1)
    assert float(value().detach()) == pytest.approx(0.5 * float(sizes.mean()), rel=1e-10)
    # The forward above changed statistics once, the penalty did not.
    assert [now - then for now, then in zip(tracked(model), before, strict=True)] == [1, 1]
    weight = model[8].weight  # type: ignore[index]
    assert isinstance(weight, nn.Parameter)
    (slope,) = torch.autograd.grad(value(), weight)
    step = 1e-6
    with torch.no_grad():
        weight[3, 5] += step
    higher = float(value().detach())
    with torch.no_grad():
        weight[3, 5] -= 2 * step
    assert float(slope[3, 5]) == pytest.approx((higher - float(value().detach())) / (2 * step), rel=1e-4, abs=1e-9)


def test_grad_norm_costs_a_forward_and_norm_decay_one_image_once() -> None:
    model = conv_net()
    with counted(model) as passes:
        train(replace(natural(), regularizer=GradNorm()), model, updates=2)
    assert passes.forwards == 4
    model = conv_net()
    with counted(model) as passes:
        train(replace(natural(), regularizer=NormDecay()), model, updates=2)
    assert passes.forwards == 3


# Specs.

SPEC = """\
name: regularized
data: {{name: digits}}
architecture: {{name: small_cnn}}
threat: {{norm: linf, eps: 0.1}}
defense: {{name: pgd_at, regularizer: {0}}}
train: {{epochs: 1, {1}}}
"""


@pytest.mark.parametrize(
    ("name", "train", "said"),
    [
        ("grad_norm", "precision: bf16", "too coarse for the second derivatives of 'grad_norm'"),
        ("grad_norm", "compile: true", "no second derivatives, which 'grad_norm' takes"),
        ("norm_decay", "compile: true", "does not show the layers that 'norm_decay' reads"),
        ("svc", "compile: true", "does not show the layers that 'svc' reads"),
    ],
)
def test_what_a_regularizer_cannot_work_with_is_refused(name: str, train: str, said: str) -> None:
    ExperimentSpec.parse(SPEC.format(name, "batch_size: 8"), "the test")
    with pytest.raises(SpecError, match=said):
        ExperimentSpec.parse(SPEC.format(name, train), "the test")


def test_pgd_at_reports_the_penalty() -> None:
    model = conv_net().train()
    defense = replace(pgd_at(steps=1), regularizer=NormDecay(weight=0.5, memory=0))
    step = defense.start(model, torch.optim.SGD(model.parameters(), lr=0.0), StreamNoise.on(torch.device("cpu")))
    metrics = step(*labeled(), LINF, progress())
    assert float(metrics["penalty"]) > 0
