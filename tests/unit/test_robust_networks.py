"""RobustResNet, WRN-A, WRN-34-R and RaResNet: published counts, keys and equations, and the scaling rule."""

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import (
    CIFAR,
    IMAGENET,
    State,
    build,
    build_small,
    build_weightless,
    classify,
    convolve,
    count_macs,
    count_parameters,
    images,
    norm,
)
from torch import Tensor

from robustcli.architectures import ImageShape
from robustcli.architectures.robust_scaling import Block, cost, robust_scaling
from robustcli.errors import RobustCliError

pytestmark = pytest.mark.slow

BASIC = {"block": "basic"}


@pytest.mark.parametrize(
    ("name", "settings", "expected", "gigamacs"),
    [
        ("robust_resnet", {}, 19_222_738, 5.0802),
        ("robust_resnet", {"budget": 5.0}, 19_222_738, 5.0802),
        ("robust_resnet", {"budget": 10.0}, 39_033_982, 10.7388),
        ("robust_resnet", {"budget": 20.0}, 75_856_698, 19.8199),
        ("robust_resnet", {"budget": 40.0}, 147_262_458, 39.2729),
        ("robust_resnet", {"budget": 5.0, **BASIC}, 18_707_930, 5.0769),
        ("robust_resnet", {"budget": 10.0, **BASIC}, 38_323_482, 10.8362),
        ("robust_resnet", {"budget": 20.0, **BASIC}, 75_302_490, 20.2157),
        ("robust_resnet", {"budget": 40.0, **BASIC}, 147_291_738, 40.3811),
        ("robust_wide_resnet", {}, 68_116_698, 19.1328),
        ("robust_arch_wide_resnet", {}, 267_240_802, 60.4675),
        ("robust_wide_resnet", {"widths": (10, 10, 10)}, 46_160_474, 6.6589),
        ("robust_wide_resnet", {"widths": (12, 12, 12)}, 66_457_818, 9.5823),
    ],
)
def test_size_is_the_published_one(name: str, settings: dict[str, Any], expected: int, gigamacs: float) -> None:
    network = build_weightless(name, **settings)
    assert count_parameters(network) == expected
    assert round(count_macs(network, CIFAR) / 1e9, 4) == gigamacs


@pytest.mark.parametrize(
    ("depth", "width", "millions", "gigamacs"),
    [(4, 10, 39.588, 5.989), (5, 12, 70.539, 10.544), (7, 14, 132.891, 19.585), (11, 16, 269.941, 39.257)],
)
def test_equally_deep_stages_have_their_published_size(
    depth: int, width: int, millions: float, gigamacs: float
) -> None:
    network = build_weightless("robust_resnet", depths=(depth,) * 3, widths=(width,) * 3)
    assert round(count_parameters(network) / 1e6, 3) == millions
    assert round(count_macs(network, CIFAR) / 1e9, 3) == gigamacs


@pytest.mark.parametrize(("name", "expected"), [("robust_resnet", 19_291_948), ("robust_wide_resnet", 68_162_868)])
def test_a_hundred_classes(name: str, expected: int) -> None:
    assert count_parameters(build_weightless(name, ImageShape(3, 32, 32, 100))) == expected


@pytest.mark.parametrize("block", ["robust", "basic"])
def test_scaling_is_monotone_and_keeps_near_its_budgets(block: Block) -> None:
    budgets = [0.025 * 1.01**i for i in range(900)]
    sizes = [robust_scaling(budget, block) for budget in budgets]
    for (depths, widths), (more_depths, more_widths) in pairwise(sizes):
        assert all(one <= other for one, other in zip(depths + widths, more_depths + more_widths, strict=True))
    for budget, size in zip(budgets, sizes, strict=True):
        ratio = cost(size, block) / budget
        assert 1 / 1.16 < ratio < 1.16 or budget < 1
        assert 1 / 1.26 < ratio < 1.25 or budget < 0.1
        assert 1 / 1.51 < ratio < 1.37


@pytest.mark.parametrize("block", ["robust", "basic"])
def test_scaling_has_the_published_networks_at_their_budgets(block: Block) -> None:
    published = {5: (14, 14, 7, 5, 7, 3), 10: (17, 17, 8, 7, 9, 4), 20: (22, 22, 11, 8, 11, 5)}
    for budget, numbers in {**published, 40: (27, 28, 13, 10, 14, 6)}.items():
        for near in (budget * (1 - 1e-9), budget, budget * (1 + 1e-9)):
            depths, widths = robust_scaling(near, block)
            assert depths + widths == numbers


def test_scaling_keeps_its_ratios() -> None:
    for budget in (5, 7, 10, 14, 20, 28, 40, 60, 80, 160):
        depths, widths = robust_scaling(budget)
        assert sum(depths) / (sum(depths) + sum(widths)) == pytest.approx(0.7, abs=0.035)
        assert depths[0] / depths[2] == pytest.approx(2, rel=0.15)
        assert widths[0] / widths[2] == pytest.approx(2, rel=0.25)


@pytest.mark.parametrize("budget", [0.03, 0.62, 0.63, 3, 6, 60])
@pytest.mark.parametrize("block", ["robust", "basic"])
def test_the_cost_that_scaling_goes_by_is_that_of_the_network(budget: float, block: Block) -> None:
    found = count_macs(build_weightless("robust_resnet", budget=budget, block=block), CIFAR)
    assert found == round(1e9 * cost(robust_scaling(budget, block), block))


@pytest.mark.parametrize("budget", [0.62, 0.63, 0.7, 3, 6, 60])
def test_scaling_takes_the_nearest_member_of_its_chain(budget: float) -> None:
    """Below A1 and above A4 a budget stands for 1.6 % more and 1.8 % less, between them for up to 8 % more."""
    costs = sorted({cost(robust_scaling(budget * 1.002**i), "robust") for i in range(-200, 200)})
    targets = [share * budget for share in (0.982, 1.016, 1.04)]
    assert cost(robust_scaling(budget), "robust") in [
        min(costs, key=lambda found, target=target: abs(found - target)) for target in targets
    ]


@pytest.mark.parametrize(("block", "needed"), [("robust", "0.0214"), ("basic", "0.0124")])
def test_a_budget_below_the_smallest_network_is_refused(block: Block, needed: str) -> None:
    with pytest.raises(RobustCliError, match=rf"architecture.budget: 0.01 .* of {block} blocks; write {needed}"):
        robust_scaling(0.01, block)
    depths, widths = robust_scaling(float(needed), block)
    assert depths + widths == (1,) * 6


def robust_reference(state: State, x: Tensor, *, depths: tuple[int, ...], activated: bool) -> Tensor:
    x = convolve(state, "stem_conv", x, padding=1)
    for stage, depth in enumerate(depths):
        for i in range(depth):
            name, stride = f"blocks.{stage}.layer.{i}", 2 if stage > 0 and i == 0 else 1
            a = norm(state, f"{name}.bn1", x).relu()
            u = norm(state, f"{name}.bn2", convolve(state, f"{name}.conv1", a if activated else x)).relu()
            width = u.shape[1] // 8
            parts = [u[:, j * width : (j + 1) * width] for j in range(8)]
            done: list[Tensor] = []
            for j in range(7):
                z = parts[j] if j == 0 or stride > 1 else parts[j] + done[-1]
                weight = state[f"{name}.convs.{j}.weight"]
                y = F.conv2d(z, weight, stride=stride, padding=1, groups=4)
                done.append(norm(state, f"{name}.bns.{j}", y).relu())
            done.append(parts[7] if stride == 1 else F.avg_pool2d(parts[7], 3, 2, 1, count_include_pad=True))
            m = convolve(state, f"{name}.conv3", torch.cat(done, 1))
            v = norm(state, f"{name}.gate.norm", m)
            hidden = F.linear(v.mean((2, 3)), state[f"{name}.gate.se.fc1.weight"].flatten(1)).relu()
            shares = F.linear(hidden, state[f"{name}.gate.se.fc2.weight"].flatten(1)).sigmoid()
            short = convolve(state, f"{name}.shortcut.0", a, stride) if i == 0 else x
            x = m + short + v * shares[:, :, None, None]
            assert x.shape[1] == 4 * 2**stage * 16
    return classify(state, "fc", norm(state, "norm1", x).relu())


@pytest.mark.parametrize("activated", [False, True])
def test_robust_block_is_its_equations(activated: bool) -> None:
    depths = (2, 2, 1)
    settings: dict[str, Any] = {"depths": depths, "widths": (1, 1, 1), "expands_activated": activated}
    network, x = build_small("robust_resnet", **settings), images(CIFAR)
    expected = robust_reference(dict(network.state_dict()), x, depths=depths, activated=activated)
    torch.testing.assert_close(network(x), expected, atol=1e-4, rtol=1e-4)


def test_the_first_norm_of_a_block_that_projects_nothing_never_learns() -> None:
    small: dict[str, Any] = {"depths": (2, 1, 1), "widths": (1, 1, 1)}
    for activated, learns in ((False, False), (True, True)):
        torch.manual_seed(0)
        network = build("robust_resnet", expands_activated=activated, **small)
        network(images(CIFAR)).square().sum().backward()
        unused = {name for name, parameter in network.named_parameters() if parameter.grad is None}
        assert unused == (set() if learns else {f"blocks.0.layer.1.bn1.{part}" for part in ("weight", "bias")})


def test_equal_stages_are_the_wide_network_of_trades() -> None:
    wide = build_small("wide_resnet", depth=16, widen=2)
    staged = build("robust_wide_resnet", depths=(2, 2, 2), widths=(2, 2, 2)).eval()
    renamed = {}
    for key, value in wide.state_dict().items():
        head, _, rest = key.partition(".")
        if head.startswith("block"):
            key = f"blocks.{int(head[-1]) - 1}.{rest}"
        renamed[key.replace("conv1", "stem_conv", 1) if key.startswith("conv1") else key] = value
    staged.load_state_dict(renamed, strict=True)
    x = images(CIFAR)
    torch.testing.assert_close(staged(x), wide(x))


def test_basic_blocks_are_those_of_form_b() -> None:
    network, x = build_small("robust_resnet", depths=(2, 1, 2), widths=(1, 2, 1), block="basic"), images(CIFAR)
    state = dict(network.state_dict())
    y = convolve(state, "stem_conv", x, padding=1)
    for stage, depth in enumerate((2, 1, 2)):
        for i in range(depth):
            name, stride = f"blocks.{stage}.layer.{i}", 2 if stage > 0 and i == 0 else 1
            a = norm(state, f"{name}.bn1", y).relu()
            z = norm(state, f"{name}.bn2", convolve(state, f"{name}.conv1", a, stride, 1)).relu()
            projects = f"{name}.shortcut.0.weight" in state
            y = convolve(state, f"{name}.conv2", z, 1, 1) + (
                convolve(state, f"{name}.shortcut.0", a, stride) if projects else y
            )
    torch.testing.assert_close(network(x), classify(state, "fc", norm(state, "norm1", y).relu()))


# RaResNet


@pytest.mark.parametrize(
    ("name", "expected", "millions", "gigamacs"),
    [
        ("robust_arch_resnet50", 26_143_228, 26, 6.174),
        ("robust_arch_resnet101", 45_901_928, 46, 11.188),
        # Published to the last digit, and so are its multiply-accumulates.
        ("robust_arch_wide_resnet101_2", 104_065_776, 104, 25.504),
    ],
)
def test_size_on_imagenet_is_the_published_one(name: str, expected: int, millions: int, gigamacs: float) -> None:
    network = build_weightless(name, IMAGENET)
    assert count_parameters(network) == expected
    assert round(expected / 1e6) == millions
    assert round(count_macs(network, IMAGENET) / 1e9, 3) == gigamacs


def robust_arch_reference(state: State, x: Tensor, depths: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
    x = norm(state, "stem.stem.stem.1", convolve(state, "stem.stem.stem.0", x, 2, 3)).relu()
    for stage, (depth, stride) in enumerate(zip(depths, strides, strict=True), start=1):
        for i in range(depth):
            block, s = f"stages.stage{stage}.stage{stage}-block{i}", stride if i == 0 else 1
            y = F.silu(convolve(state, f"{block}.F.a.0", x))
            y = F.conv2d(y, state[f"{block}.F.b.0.weight"], stride=s, padding=1, groups=2)
            y = F.silu(norm(state, f"{block}.F.b.1", y))
            seen = y.mean((2, 3), keepdim=True)
            seen = F.conv2d(seen, state[f"{block}.F.se.fc1.weight"], state[f"{block}.F.se.fc1.bias"]).relu()
            seen = F.conv2d(seen, state[f"{block}.F.se.fc2.weight"], state[f"{block}.F.se.fc2.bias"])
            y = norm(state, f"{block}.F.c.1", convolve(state, f"{block}.F.c.0", y * seen.sigmoid()))
            if i == 0:
                x = norm(state, f"{block}.proj.1", convolve(state, f"{block}.proj.0", x, s))
            x = F.silu(x + y)
    return classify(state, "fc", x)


@pytest.mark.parametrize("strides", [(2, 2, 2, 2), (1, 2, 1, 2)])
def test_a_robust_bottleneck_is_its_equations(strides: tuple[int, ...]) -> None:
    network, x = build_small("robust_arch_resnet50", width=16, strides=strides), images(ImageShape(3, 64, 64, 10))
    state = network.state_dict()
    # Of its table, 1120 channels behind a stem of 16 are 186.7, and 184 is the next multiple of 8.
    assert state["stages.stage3.stage3-block12.F.c.0.weight"].shape == (184, 46, 1, 1)
    assert state["stages.stage3.stage3-block0.F.se.fc1.weight"].shape == (24, 46, 1, 1)
    torch.testing.assert_close(network(x), robust_arch_reference(state, x, (5, 8, 13, 1), strides))
    silu = build("robust_arch_resnet50", width=16, strides=strides, stem_activation="silu").eval()
    silu.load_state_dict(state)
    assert not torch.allclose(silu(x), network(x), atol=1e-4)
