"""RegNet against torchvision's, SENet and SKResNet against their equations, and the rule of RegNet's widths."""

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
from torch import Tensor, nn
from torchvision import models
from torchvision.models.regnet import BlockParams

from robustcli.architectures import ImageShape
from robustcli.architectures.quantized_stages import on_the_line
from robustcli.errors import RobustCliError

# The line of each network: depth, w0, wa, wm, group width.
LINES = {
    "x_400mf": (22, 24, 24.48, 2.54, 16),
    "y_400mf": (16, 48, 27.89, 2.09, 8),
    "x_800mf": (16, 56, 35.73, 2.28, 16),
    "y_800mf": (14, 56, 38.84, 2.4, 16),
    "x_1_6gf": (18, 80, 34.01, 2.25, 24),
    "y_1_6gf": (27, 48, 20.71, 2.65, 24),
}


# RegNet


@pytest.mark.parametrize(
    ("size", "millions", "gigamacs"),
    [
        ("x_400mf", 5.496, 0.4138),
        ("y_400mf", 4.344, 0.4018),
        ("x_800mf", 7.260, 0.7997),
        ("y_800mf", 6.433, 0.8339),
        ("x_1_6gf", 9.190, 1.6028),
        ("y_1_6gf", 11.202, 1.6121),
    ],
)
def test_networks_for_imagenet_have_their_published_size(size: str, millions: float, gigamacs: float) -> None:
    network = build_weightless("regnet", IMAGENET, size=size, form="imagenet")
    assert round(count_parameters(network) / 1e6, 3) == millions
    assert round(count_macs(network, IMAGENET) / 1e9, 4) == gigamacs


@pytest.mark.parametrize(
    ("size", "parameters", "gigamacs", "first"),
    [
        ("x_400mf", 5_098_986, 0.0338, 2),
        ("y_400mf", 3_907_554, 0.0334, 2),
        ("y_400mf", 3_907_554, 0.1241, 1),
        ("x_800mf", 6_593_386, 0.0652, 2),
        ("y_800mf", 5_655_362, 0.0688, 2),
        ("x_1_6gf", 8_286_266, 0.1308, 2),
    ],
)
def test_stages_of_imagenet_at_32_pixels(size: str, parameters: int, gigamacs: float, first: int) -> None:
    stages = on_the_line(*LINES[size])
    network = build_weightless(
        "regnet_stages",
        depths=stages.depths,
        widths=stages.widths,
        strides=(first, 2, 2, 2),
        group_width=stages.group_width,
        squeeze=0.25 if size.startswith("y") else 0.0,
        stem=32,
    )
    assert count_parameters(network) == parameters
    assert round(count_macs(network, CIFAR) / 1e9, 4) == gigamacs


@pytest.mark.parametrize("size", LINES)
def test_the_rule_gives_torchvisions_stages(size: str) -> None:
    depth, w0, wa, wm, group_width = LINES[size]
    theirs = BlockParams.from_init_params(depth, w0, wa, wm, group_width)
    ours = on_the_line(depth, w0, wa, wm, group_width)
    assert (list(ours.depths), list(ours.widths)) == (theirs.depths, theirs.widths)
    assert {min(ours.group_width, width) for width in ours.widths} == set(theirs.group_widths)


def test_the_rule_by_hand() -> None:
    # 24 + 36 j for j = 0..3 is 24, 60, 96, 132; nearest powers of 2.5 times 24: 24, 60, 150, 150 (of 132).
    found = on_the_line(4, 24, 36, 2.5, 16)
    # 60 is 56 or 64 by eights, 7.5 of them, and Python rounds halves to the even 8; 24 in groups of 16 is 32.
    assert (found.depths, found.widths) == ((1, 1, 2), (32, 64, 160))
    assert sum(on_the_line(13, 24, 36.44, 2.49, 8).depths) == 13
    assert on_the_line(5, 24, 0, 2, 64).widths == (24,)


def test_the_rule_and_the_stages_give_the_named_network() -> None:
    state = {key: value.shape for key, value in build_weightless("regnet").state_dict().items()}
    for name in ("regnet_rule", "regnet_stages"):
        assert {key: value.shape for key, value in build_weightless(name).state_dict().items()} == state
        assert count_macs(build_weightless(name), CIFAR) == count_macs(build_weightless("regnet"), CIFAR)


@pytest.mark.parametrize("size", ["x_400mf", "y_400mf"])
def test_regnet_is_torchvisions_by_name_of_every_weight(size: str) -> None:
    shape = ImageShape(3, 40, 48, 10)
    network = build_small("regnet", shape, size=size, form="imagenet")
    other = models.get_model(f"regnet_{size}", weights=None, num_classes=10).eval()
    other.load_state_dict(network.state_dict(), strict=True)
    x = images(shape)
    with torch.no_grad():
        torch.testing.assert_close(network(x), other(x))


def test_regnet_for_small_images_is_torchvisions_with_another_stem() -> None:
    network, x = build_small("regnet", size="x_200mf"), images(ImageShape(3, 16, 16, 10))
    params = BlockParams.from_init_params(13, 24, 36.44, 2.49, 8)
    other = models.regnet.RegNet(params, num_classes=10, stem_width=64).eval()
    other.stem[0].stride = (1, 1)
    for place in ("block1.block1-0", "block2.block2-0"):
        block = other.get_submodule(f"trunk_output.{place}")
        block.proj[0].stride = block.f.b[0].stride = (1, 1)
    other.load_state_dict(network.state_dict(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(network(x), other(x))


def test_regnet_is_drawn_by_fan_out() -> None:
    torch.manual_seed(0)
    state = build("regnet", size="x_400mf").state_dict()
    for key, fan_out in (("block4-0.f.a.0", 384), ("block4-3.f.b.0", 9 * 384)):
        weight = state[f"trunk_output.block4.{key}.weight"]
        assert weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.03)
    assert state["fc.weight"].std().item() == pytest.approx(0.01, rel=0.05)
    assert state["fc.bias"].abs().max() == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depths": (1, 2)}, "depths: 2 stages, but 4 widths and 4 strides"),
        ({"depths": (), "widths": (), "strides": ()}, "depths: 0 stages"),
        ({"widths": (24, 56, 156, 368)}, "widths: 156 channels cannot be divided into groups of 8; write 160, or"),
    ],
)
def test_stages_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RobustCliError, match=message):
        build("regnet_stages", **settings)


# SENet and SKResNet


class Recorded(dict[str, Tensor]):
    """A state that records which entries were read."""

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Tensor:
        self.read.add(key)
        return super().__getitem__(key)


def senet_reference(state: State, x: Tensor) -> Tensor:
    x = norm(state, "bn1", convolve(state, "conv1", x, padding=1)).relu()
    for stage in range(1, 5):
        for i in range(2):
            block, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            a = norm(state, f"{block}.bn1", x).relu()
            y = convolve(state, f"{block}.conv1", a, stride, 1)
            y = convolve(state, f"{block}.conv2", norm(state, f"{block}.bn2", y).relu(), 1, 1)
            fc1, fc2 = f"{block}.gate.fc1", f"{block}.gate.fc2"
            hidden = F.linear(y.mean((2, 3)), state[f"{fc1}.weight"].flatten(1), state[f"{fc1}.bias"]).relu()
            shares = F.linear(hidden, state[f"{fc2}.weight"].flatten(1), state[f"{fc2}.bias"]).sigmoid()
            x = y * shares[:, :, None, None] + (convolve(state, f"{block}.shortcut.0", a, stride) if stride > 1 else x)
    return classify(state, "linear", x)


def selective_reference(state: State, name: str, x: Tensor, stride: int, unit: str) -> Tensor:
    half = x.shape[1] // 2
    branches = []
    for i in range(2):
        seen = x[:, i * half : (i + 1) * half] if unit == "split" else x
        y = F.conv2d(seen, state[f"{name}.paths.{i}.conv.weight"], None, stride, padding=i + 1, dilation=i + 1)
        branches.append(norm(state, f"{name}.paths.{i}.bn", y).relu())
    means = (branches[0] + branches[1]).mean((2, 3))
    z = F.linear(means, state[f"{name}.attn.fc_reduce.weight"].flatten(1))
    z = norm(state, f"{name}.attn.bn", z).relu()
    channels = branches[0].shape[1]
    logits = F.linear(z, state[f"{name}.attn.fc_select.weight"].flatten(1))
    # Two branches: the softmax is the logistic function of the difference.
    first = (logits[:, :channels] - logits[:, channels:]).sigmoid()[:, :, None, None]
    return first * branches[0] + (1 - first) * branches[1]


def sknet_reference(state: State, x: Tensor, depth: int, unit: str, form: str) -> Tensor:
    if form == "imagenet":
        x = F.max_pool2d(norm(state, "bn1", convolve(state, "conv1", x, 2, 3)).relu(), 3, 2, 1)
    else:
        x = norm(state, "bn1", convolve(state, "conv1", x, padding=1)).relu()
    for stage, blocks in enumerate((2, 2, 2, 2) if depth == 18 else (3, 4, 6, 3), start=1):
        for i in range(blocks):
            block, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            if depth == 50:
                y = norm(state, f"{block}.conv1.bn", convolve(state, f"{block}.conv1.conv", x)).relu()
                y = selective_reference(state, f"{block}.conv2", y, stride, unit)
                y = norm(state, f"{block}.conv3.bn", convolve(state, f"{block}.conv3.conv", y))
            else:
                y = selective_reference(state, f"{block}.conv1", x, stride, unit)
                y = norm(state, f"{block}.conv2.bn", convolve(state, f"{block}.conv2.conv", y, 1, 1))
            if i == 0 and (stage > 1 or depth == 50):
                x = norm(state, f"{block}.downsample.1", convolve(state, f"{block}.downsample.0", x, stride))
            x = (y + x).relu()
    return classify(state, "fc", x)


def require_all_read(network: nn.Module, state: Recorded) -> None:
    assert state.read == {key for key in network.state_dict() if not key.endswith("num_batches_tracked")}


def test_senet_is_its_equations() -> None:
    network, x = build_small("senet18", width=16), images(CIFAR)
    state = Recorded(network.state_dict())
    torch.testing.assert_close(network(x), senet_reference(state, x), atol=1e-5, rtol=1e-4)
    require_all_read(network, state)


@pytest.mark.parametrize(
    ("depth", "unit", "form"), [(18, "split", "small"), (34, "paper", "small"), (50, "split", "imagenet")]
)
def test_sknet_is_its_equations(depth: int, unit: str, form: str) -> None:
    network, x = build_small("sknet", width=8, depth=depth, unit=unit, form=form), images(CIFAR)
    state = Recorded(network.state_dict())
    expected = sknet_reference(state, x, depth, unit, form)
    torch.testing.assert_close(network(x), expected, atol=1e-5, rtol=1e-4)
    require_all_read(network, state)


@pytest.mark.parametrize(
    ("settings", "widths"),
    [
        ({}, (16, 16, 32, 64)),
        ({"depth": 50}, (8, 8, 16, 32)),
        ({"unit": "paper"}, (32, 32, 32, 32)),
        ({"unit": "paper", "width": 128}, (32, 32, 32, 64)),
    ],
)
def test_width_of_the_attention(settings: dict[str, Any], widths: tuple[int, ...]) -> None:
    state = build_weightless("sknet", **settings).state_dict()
    unit = "conv2" if settings.get("depth") == 50 else "conv1"
    found = [state[f"layer{stage}.0.{unit}.attn.fc_reduce.weight"].shape[0] for stage in range(1, 5)]
    assert tuple(found) == widths


@pytest.mark.parametrize(
    ("depth", "millions", "gigamacs"), [(18, 11.958, 1.8143), (34, 22.282, 3.6642), (50, 25.803, 4.0894)]
)
def test_sknet_for_imagenet_has_its_published_size(depth: int, millions: float, gigamacs: float) -> None:
    network = build_weightless("sknet", IMAGENET, depth=depth, form="imagenet")
    assert round(count_parameters(network) / 1e6, 3) == millions
    assert round(count_macs(network, IMAGENET) / 1e9, 4) == gigamacs


def test_units_of_the_paper_see_all_channels_in_both_branches() -> None:
    split, paper = (build_weightless("sknet", unit=unit).state_dict() for unit in ("split", "paper"))
    for i in range(2):
        key = f"layer2.1.conv1.paths.{i}.conv.weight"
        assert (split[key].shape[1], paper[key].shape[1]) == (64, 128)


def test_channels_that_cannot_be_split_are_refused() -> None:
    with pytest.raises(RobustCliError, match="width: 3 channels cannot be split into halves; write 4, or unit: paper"):
        build("sknet", width=3)
    assert build("sknet", width=3, unit="paper").eval()(images(CIFAR)).shape == (2, 10)
