"""Networks against published counts, the keys of public checkpoints, and equations written a second time."""

from collections.abc import Callable
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

from robustcli.architectures import ImageShape
from robustcli.architectures.convolutions import SameConv2d
from robustcli.architectures.layers import Layers
from robustcli.architectures.plain import LargestPixel
from robustcli.errors import RobustCliError
from robustcli.registry.registry import describe


def wide(depth: int, widen: int) -> dict[str, Any]:
    return {"depth": depth, "widen": widen}


COUNTS = [
    ("resnet18", {}, 10, 11_173_962),
    ("resnet18", {}, 100, 11_220_132),
    ("resnet18", {"strides": (1, 1, 2, 2)}, 10, 11_173_962),
    ("resnet18", {"strides": (2, 2, 2, 2)}, 10, 11_178_186),
    ("resnet34", {}, 10, 21_282_122),
    ("resnet34", {}, 100, 21_328_292),
    ("resnet50", {}, 10, 23_520_842),
    ("resnet50", {}, 100, 23_705_252),
    ("resnet101", {}, 10, 42_512_970),
    ("resnet101", {}, 100, 42_697_380),
    # Depth 18 without the second block of each stage: 18 w^2 + 4 w for each width w.
    ("preact_resnet10", {}, 10, 11_172_170 - sum(18 * w * w + 4 * w for w in (64, 128, 256, 512))),
    ("preact_resnet18", {"form": "a"}, 10, 11_171_146),
    ("preact_resnet18", {}, 10, 11_172_170),
    ("preact_resnet18", {}, 100, 11_218_340),
    ("preact_resnet18", {"form": "c"}, 10, 11_172_170),
    ("preact_resnet18", {"form": "dm"}, 10, 12_548_426),
    ("preact_resnet34", {}, 10, 21_280_330),
    ("preact_resnet34", {"form": "dm"}, 10, 22_656_586),
    ("preact_resnet50", {}, 10, 23_513_162),
    ("wide_resnet", wide(16, 8), 10, 10_961_370),
    ("wide_resnet", wide(28, 4), 10, 5_849_050),
    ("wide_resnet", {}, 10, 36_479_194),
    ("wide_resnet", wide(34, 10), 10, 46_160_474),
    ("wide_resnet", wide(34, 10), 100, 46_218_164),
    ("wide_resnet", wide(34, 12), 10, 66_457_818),
    ("wide_resnet", wide(34, 15), 10, 103_819_674),
    ("wide_resnet", wide(34, 20), 10, 184_531_674),
    ("wide_resnet", wide(40, 2), 10, 2_243_546),
    ("wide_resnet", wide(46, 14), 10, 128_389_210),
    ("wide_resnet", wide(70, 16), 10, 266_796_506),
    ("wide_resnet", wide(82, 8), 10, 79_125_466),
    ("wide_resnet", wide(94, 16), 10, 365_915_610),
    ("wide_resnet", wide(106, 16), 10, 415_475_162),
    ("alexnet", {}, 10, 2_850_634),
    ("alexnet", {"strides": (1, 1, 2, 2)}, 10, 2_850_634),
    ("vgg11", {}, 10, 9_425_674),
    ("vgg13", {}, 10, 9_610_570),
    ("vgg16", {}, 10, 14_922_826),
    ("vgg16", {"strides": (1, 1, 2, 2, 2)}, 10, 14_922_826),
    ("vgg16", {"form": "kuangliu"}, 10, 14_728_266),
    ("vgg19", {}, 10, 20_235_082),
    ("regnet", {}, 10, 2_321_946),
    ("regnet", {"size": "x_400mf"}, 10, 4_779_338),
    ("regnet", {"size": "y_400mf"}, 10, 5_714_362),
    ("senet18", {}, 10, 11_260_354),
    ("sknet", {}, 10, 11_442_506),
    ("sknet", {"depth": 34}, 10, 21_766_826),
    ("sknet", {"depth": 50}, 10, 23_766_970),
]


@pytest.mark.parametrize(("name", "settings", "classes", "expected"), COUNTS)
def test_parameter_count_is_the_published_one(name: str, settings: dict[str, Any], classes: int, expected: int) -> None:
    shape = ImageShape(3, 32, 32, classes)
    forms = ("trades", "deepmind") if name == "wide_resnet" else (settings.get("form"),)
    for form in forms:
        chosen = {**settings, "form": form} if form else settings
        assert count_parameters(build_weightless(name, shape, **chosen)) == expected


@pytest.mark.parametrize(
    ("model", "millions", "gigamacs"),
    [
        ("resnet18", 11.690, 1.814),
        ("resnet34", 21.798, 3.664),
        ("resnet50", 25.557, 4.089),
        ("wide_resnet50_2", 68.883, 11.398),
        ("regnet_x_400mf", 5.496, 0.414),
        ("alexnet", 61.101, 0.714),
        ("vgg16_bn", 138.366, 15.470),
        ("resnext50_32x4d", 25.029, 4.230),
        ("resnext101_32x8d", 88.791, 16.414),
        ("swin_t", 28.288, 4.491),
    ],
)
def test_torchvision_networks_have_their_published_size(model: str, millions: float, gigamacs: float) -> None:
    network = build_weightless("torchvision", IMAGENET, model=model)
    assert round(count_parameters(network) / 1e6, 3) == millions
    assert round(count_macs(network, IMAGENET) / 1e9, 3) == gigamacs


def test_small_cnn_has_the_layers_of_wong_et_al() -> None:
    network = build_weightless("small_cnn", ImageShape(1, 28, 28, 10))
    convolutions = (16 * 16 + 16) + (32 * 16 * 16 + 32)
    assert count_parameters(network) == convolutions + (32 * 49 * 100 + 100) + (100 * 10 + 10)
    assert list(network.state_dict()) == [f"{i}.{part}" for i in (0, 2, 5, 7) for part in ("weight", "bias")]


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("resnet18", {}, 0.5554),
        ("resnet34", {}, 1.1594),
        ("resnet50", {}, 1.2978),
        ("resnet101", {}, 2.5100),
        ("preact_resnet18", {}, 0.5554),
        ("preact_resnet34", {}, 1.1594),
        ("preact_resnet50", {}, 1.2978),
        ("preact_resnet18", {"form": "dm"}, 0.6058),
        ("preact_resnet34", {"form": "dm"}, 1.2097),
        ("wide_resnet", {}, 5.2433),
        ("wide_resnet", {"form": "deepmind"}, 5.2433),
        ("wide_resnet", wide(16, 8), 1.5481),
        ("wide_resnet", wide(28, 4), 0.8456),
        ("wide_resnet", wide(34, 10), 6.6589),
        ("wide_resnet", wide(34, 12), 9.5823),
        ("wide_resnet", wide(34, 15), 14.9623),
        ("wide_resnet", wide(34, 20), 26.5819),
        ("wide_resnet", wide(40, 2), 0.3276),
        ("wide_resnet", wide(46, 14), 18.5854),
        ("wide_resnet", wide(70, 16), 38.7642),
        ("wide_resnet", wide(82, 8), 11.5138),
        ("wide_resnet", wide(94, 16), 53.2597),
        ("wide_resnet", wide(106, 16), 60.5075),
        ("resnet18", {"strides": (1, 1, 2, 2)}, 1.7634),
        ("resnet18", {"strides": (1, 1, 1, 2)}, 4.9846),
        ("resnet18", {"strides": (1, 1, 1, 1)}, 11.4271),
        ("resnet18", {"strides": (1, 2, 2, 1)}, 0.9581),
        ("resnet18", {"strides": (1, 2, 1, 2)}, 1.3607),
        ("resnet18", {"strides": (2, 2, 2, 2)}, 0.1412),
        ("resnet18", {"upsample": 2}, 2.2217),
        ("resnet18", {"strides": (2, 2, 2, 2), "upsample": 2}, 0.5649),
        ("preact_resnet18", {"strides": (1, 1, 2, 2)}, 1.7634),
        ("preact_resnet18", {"upsample": 2}, 2.2217),
        ("wide_resnet", {**wide(34, 10), "strides": (1, 1, 2)}, 20.1855),
        ("alexnet", {}, 0.0555),
        ("alexnet", {"upsample": 2}, 0.2208),
        ("alexnet", {"strides": (1, 2, 2, 2)}, 0.2208),
        ("alexnet", {"strides": (1, 2, 2, 2), "upsample": 2}, 0.8820),
        ("alexnet", {"strides": (1, 1, 2, 2)}, 0.7816),
        ("alexnet", {"strides": (1, 1, 2, 2), "upsample": 2}, 3.2941),
        ("alexnet", {"strides": (1, 2, 2, 1)}, 0.2208),
        ("alexnet", {"strides": (1, 1, 1, 2)}, 2.2248),
        ("alexnet", {"strides": (1, 1, 1, 2), "upsample": 2}, 9.4582),
        ("vgg11", {}, 0.1530),
        ("vgg13", {}, 0.2285),
        ("vgg16", {}, 0.3134),
        ("vgg16", {"form": "kuangliu"}, 0.3132),
        ("vgg16", {"upsample": 2}, 1.2530),
        ("vgg16", {"strides": (1, 2, 2, 2, 2)}, 1.1344),
        ("vgg16", {"strides": (1, 1, 2, 2, 2)}, 3.7391),
        ("vgg16", {"strides": (1, 1, 2, 2, 2), "upsample": 2}, 14.9558),
        ("vgg16", {"strides": (1, 1, 1, 2, 2)}, 9.6279),
        ("vgg19", {}, 0.3983),
        ("regnet", {}, 0.2233),
        ("regnet", {"size": "x_400mf"}, 0.4662),
        ("regnet", {"size": "y_400mf"}, 0.4671),
        ("senet18", {}, 0.5555),
        ("sknet", {}, 0.5557),
        ("sknet", {"depth": 34}, 1.1599),
        ("sknet", {"depth": 50}, 1.2981),
    ],
)
@pytest.mark.slow
def test_cost_is_the_published_one(name: str, settings: dict[str, Any], expected: float) -> None:
    assert round(count_macs(build_weightless(name, **settings), CIFAR) / 1e9, 4) == expected


@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18", "wide_resnet"])
def test_stem_stride_2_costs_a_quarter(name: str) -> None:
    full = count_macs(build_weightless(name), CIFAR)
    assert count_macs(build_weightless(name, stem_stride=2), CIFAR) == pytest.approx(full / 4, rel=0.001)


def test_width_is_that_of_the_first_stage() -> None:
    for name, last in (("resnet18", "bn2"), ("resnet50", "conv2"), ("preact_resnet50", "conv2")):
        state = build_weightless(name, width=6).state_dict()
        assert state["conv1.weight"].shape[0] == state[f"layer1.1.{last}.weight"].shape[0] == 6
        assert state[f"layer4.1.{last}.weight"].shape[0] == 48


def test_resnet152_counts_as_torchvisions_with_a_smaller_stem() -> None:
    with torch.device("meta"):
        other = models.resnet152(weights=None, num_classes=10)
    assert count_parameters(build_weightless("resnet152")) == count_parameters(other) - 64 * 3 * (7 * 7 - 3 * 3)


def test_plain_networks_are_their_equations() -> None:
    alexnet, x = build_small("alexnet", width=4, strides=(2, 1, 2, 1)), images(CIFAR)
    state = dict(alexnet.state_dict())
    convolutions = iter(sorted({int(key.split(".")[1]) for key in state if key.startswith("features")}))

    def step(x: Tensor, stride: int = 1) -> Tensor:
        number = next(convolutions)
        weight = state[f"features.{number}.weight"]
        return F.conv2d(x, weight, state[f"features.{number}.bias"], stride, weight.shape[-1] // 2).relu()

    y = F.max_pool2d(step(F.max_pool2d(step(x, 2), 2, 1)), 2)
    y = F.max_pool2d(step(step(step(y))), 2, 1).mean((2, 3))
    for number in (1, 4, 6):
        y = F.linear(y, state[f"classifier.{number}.weight"], state[f"classifier.{number}.bias"])
        y = y if number == 6 else y.relu()
    torch.testing.assert_close(alexnet(x), y)


def test_vgg_is_torchvisions_with_another_head() -> None:
    for number in (11, 13, 16, 19):
        ours = build_weightless(f"vgg{number}", form="kuangliu").state_dict()
        with torch.device("meta"):
            theirs = models.get_model(f"vgg{number}_bn", weights=None).features.state_dict()
        assert {key.removeprefix("features."): value.shape for key, value in ours.items() if "features" in key} == {
            key: value.shape for key, value in theirs.items()
        }
    network = build_small("vgg11", width=64, form="kuangliu", strides=(2, 1, 2, 1, 2))
    other = models.vgg11_bn(weights=None).features.eval()
    features = [value for key, value in network.state_dict().items() if "features" in key]
    other.load_state_dict(dict(zip(other.state_dict(), features, strict=True)))
    other[7] = other[21] = nn.Identity()
    x = images(ImageShape(3, 16, 16, 10), count=1)
    with torch.no_grad():
        expected = network.classifier(other(x).mean((2, 3)))
        torch.testing.assert_close(network(x), expected)


def test_a_map_of_one_pixel_is_not_pooled() -> None:
    x = torch.rand(1, 1, 1, 3)
    torch.testing.assert_close(LargestPixel(2)(x), x[..., :2].amax(3, keepdim=True))
    torch.testing.assert_close(LargestPixel(1)(x), torch.stack([x[..., :2].amax(3), x[..., 1:].amax(3)], 3))


def pad_for(stride: int, x: Tensor) -> Tensor:
    """ "SAME" zeros of a 3x3 kernel on an even side, as the DeepMind networks have them."""
    return F.pad(x, (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1))


def preact_reference(state: State, form: str, x: Tensor) -> Tensor:
    x = convolve(state, "conv1", x, padding=1)
    for stage in range(1, 5):
        for i in range(2):
            block, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            a = norm(state, f"{block}.bn1", x).relu()
            y = convolve(state, f"{block}.conv1", a, stride, 1)
            y = convolve(state, f"{block}.conv2", norm(state, f"{block}.bn2", y).relu(), 1, 1)
            if stride == 2:
                x = convolve(state, f"{block}.shortcut.0", a if form == "b" else x, 2)
            x = x + y
    return classify(state, "linear", x if form == "a" else norm(state, "bn", x).relu())


def preact_bottleneck_reference(state: State, form: str, x: Tensor) -> Tensor:
    x = convolve(state, "conv1", x, padding=1)
    for stage, depth in enumerate((3, 4, 6, 3), start=1):
        for i in range(depth):
            block, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            a = norm(state, f"{block}.bn1", x).relu()
            y = convolve(state, f"{block}.conv1", a)
            y = convolve(state, f"{block}.conv2", norm(state, f"{block}.bn2", y).relu(), stride, 1)
            y = convolve(state, f"{block}.conv3", norm(state, f"{block}.bn3", y).relu())
            if i == 0:
                x = convolve(state, f"{block}.shortcut.0", a if form == "b" else x, stride)
            x = x + y
    return classify(state, "linear", x if form == "a" else norm(state, "bn", x).relu())


def deepmind_preact_reference(state: State, x: Tensor) -> Tensor:
    x = convolve(state, "conv_2d", x, padding=1)
    for stage in range(4):
        for i in range(2):
            block, stride = f"layer_{stage}.{i}", 2 if stage > 0 and i == 0 else 1
            y = pad_for(stride, norm(state, f"{block}.batchnorm_0", x).relu())
            y = convolve(state, f"{block}.conv_2d_1", y, stride)
            y = convolve(state, f"{block}.conv_2d_2", norm(state, f"{block}.batchnorm_1", y).relu(), 1, 1)
            if stride == 2:
                x = convolve(state, f"{block}.shortcut", pad_for(2, x), 2)
            x = x + y
    return classify(state, "logits", norm(state, "batchnorm", x).relu())


def trades_wide_reference(state: State, x: Tensor) -> Tensor:
    x = convolve(state, "conv1", x, padding=1)
    for stage in range(1, 4):
        for i in range(2):
            block, stride = f"block{stage}.layer.{i}", 2 if stage > 1 and i == 0 else 1
            a = norm(state, f"{block}.bn1", x).relu()
            y = convolve(state, f"{block}.conv1", a, stride, 1)
            y = convolve(state, f"{block}.conv2", norm(state, f"{block}.bn2", y).relu(), 1, 1)
            x = y + (convolve(state, f"{block}.convShortcut", a, stride) if i == 0 else x)
    return classify(state, "fc", norm(state, "bn1", x).relu())


def deepmind_wide_reference(state: State, x: Tensor) -> Tensor:
    x = convolve(state, "init_conv", x, padding=1)
    for stage in range(3):
        for i in range(2):
            block, stride = f"layer.{stage}.block.{i}", 2 if stage > 0 and i == 0 else 1
            a = norm(state, f"{block}.batchnorm_0", x).relu()
            y = convolve(state, f"{block}.conv_0", pad_for(stride, a), stride)
            y = convolve(state, f"{block}.conv_1", norm(state, f"{block}.batchnorm_1", y).relu(), 1, 1)
            x = y + (convolve(state, f"{block}.shortcut", a, stride) if i == 0 else x)
    return classify(state, "logits", norm(state, "batchnorm", x).relu())


@pytest.mark.parametrize(
    ("name", "settings", "reference"),
    [
        ("preact_resnet18", {"form": "a", "width": 4}, lambda state, x: preact_reference(state, "a", x)),
        ("preact_resnet18", {"form": "b", "width": 4}, lambda state, x: preact_reference(state, "b", x)),
        ("preact_resnet18", {"form": "c", "width": 4}, lambda state, x: preact_reference(state, "c", x)),
        ("preact_resnet18", {"form": "dm", "width": 4}, deepmind_preact_reference),
        ("preact_resnet50", {"form": "a", "width": 4}, lambda state, x: preact_bottleneck_reference(state, "a", x)),
        ("preact_resnet50", {"form": "b", "width": 4}, lambda state, x: preact_bottleneck_reference(state, "b", x)),
        ("preact_resnet50", {"form": "c", "width": 4}, lambda state, x: preact_bottleneck_reference(state, "c", x)),
        ("wide_resnet", {"form": "trades", "depth": 16, "widen": 2}, trades_wide_reference),
        ("wide_resnet", {"form": "deepmind", "depth": 16, "widen": 2}, deepmind_wide_reference),
    ],
)
def test_each_form_is_its_equations(
    name: str, settings: dict[str, Any], reference: Callable[[State, Tensor], Tensor]
) -> None:
    network, x = build_small(name, **settings), images(CIFAR)
    read: set[str] = set()

    class Recorded(dict[str, Tensor]):
        def __getitem__(self, key: str) -> Tensor:
            read.add(key)
            return super().__getitem__(key)

    expected = reference(Recorded(network.state_dict()), x)
    torch.testing.assert_close(network(x), expected)
    assert read == {key for key in network.state_dict() if not key.endswith("num_batches_tracked")}


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnet_is_torchvisions_with_another_stem(name: str) -> None:
    network = build_small(name, width=64)
    other = models.get_model(name, weights=None, num_classes=10).eval()
    other.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    other.maxpool = nn.Identity()
    renamed = {
        key.replace("shortcut", "downsample").replace("linear", "fc"): value
        for key, value in network.state_dict().items()
    }
    other.load_state_dict(renamed, strict=True)
    x = images(ImageShape(3, 16, 16, 10), count=1)
    with torch.no_grad():
        torch.testing.assert_close(network(x), other(x))


def test_forms_b_and_c_share_weights_but_not_the_function() -> None:
    b, c, x = build_small("preact_resnet18", width=4), build("preact_resnet18", width=4, form="c").eval(), images(CIFAR)
    c.load_state_dict(b.state_dict(), strict=True)
    assert not torch.allclose(b(x), c(x), atol=1e-3)


@pytest.mark.parametrize("name", ["preact_resnet18", "preact_resnet34", "preact_resnet50"])
def test_form_a_has_all_but_the_last_normalization(name: str) -> None:
    keys = {form: set(build_weightless(name, form=form).state_dict()) for form in "abc"}
    assert keys["b"] == keys["c"]
    assert keys["b"] - keys["a"] == {
        f"bn.{part}" for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }


def test_bottleneck_keys_are_those_of_public_checkpoints() -> None:
    for name in ("resnet50", "preact_resnet50"):
        keys = set(build_weightless(name).state_dict())
        assert {f"layer4.2.{part}{i}.weight" for part in ("conv", "bn") for i in (1, 2, 3)} <= keys
        # Stage 1 keeps the resolution but not the channels, so its first block projects too.
        assert "layer1.0.shortcut.0.weight" in keys
        assert ("layer1.0.shortcut.1.running_var" in keys) == (name == "resnet50")


def test_same_padding_at_stride_2_puts_the_zeros_at_the_end_of_even_sides() -> None:
    torch.manual_seed(0)
    convolution, x = Layers(pads_same=True).convolution(3, 4, 3, 2), images(CIFAR)
    assert isinstance(convolution, SameConv2d)
    weight = convolution.weight
    torch.testing.assert_close(convolution(x), F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, stride=2))
    assert not torch.allclose(convolution(x), F.conv2d(x, weight, stride=2, padding=1), atol=1e-3)


def test_same_padding_is_symmetric_on_odd_sides_and_taken_axis_by_axis() -> None:
    torch.manual_seed(0)
    convolution, x = Layers(pads_same=True).convolution(3, 4, 3, 2), images(ImageShape(3, 7, 8, 10))
    assert isinstance(convolution, SameConv2d)
    torch.testing.assert_close(convolution(x), F.conv2d(F.pad(x, (0, 1, 1, 1)), convolution.weight, stride=2))
    assert convolution(x).shape == (2, 4, 4, 4)


def test_deepmind_forms_move_their_statistics_slower() -> None:
    def momenta(name: str, **settings: Any) -> set[float | None]:
        network = build_weightless(name, **settings)
        return {module.momentum for module in network.modules() if isinstance(module, nn.BatchNorm2d)}

    assert momenta("wide_resnet", form="deepmind") == momenta("preact_resnet18", form="dm") == {0.01}
    assert momenta("wide_resnet") == momenta("preact_resnet18") == momenta("resnet18") == {0.1}


def test_trades_form_draws_convolutions_by_fan_out() -> None:
    torch.manual_seed(0)
    state = build("wide_resnet", depth=10, widen=4).state_dict()
    for key, fan_out in (("block3.layer.0.conv2.weight", 9 * 256), ("block3.layer.0.convShortcut.weight", 256)):
        assert state[key].std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.03)
    assert state["fc.bias"].abs().max() == 0


SMALL = [
    ("resnet18", {"width": 4}),
    ("resnet50", {"width": 4}),
    ("preact_resnet18", {"width": 4, "form": "a"}),
    ("preact_resnet18", {"width": 4, "form": "b"}),
    ("preact_resnet18", {"width": 4, "form": "c"}),
    ("preact_resnet18", {"width": 4, "form": "dm"}),
    ("preact_resnet50", {"width": 4}),
    ("wide_resnet", {"depth": 10, "widen": 1, "form": "trades"}),
    ("wide_resnet", {"depth": 10, "widen": 1, "form": "deepmind"}),
    ("small_cnn", {"width": 4, "hidden": 8}),
    ("alexnet", {"width": 4}),
    ("vgg11", {"width": 4, "form": "kuangliu"}),
    ("vgg11", {"width": 4}),
    ("regnet_stages", {"depths": (1, 2), "widths": (8, 16), "strides": (1, 2), "group_width": 4, "stem": 8}),
    ("senet18", {"width": 4}),
    ("sknet", {"width": 4}),
    ("sknet", {"width": 4, "depth": 50, "form": "imagenet"}),
]


@pytest.mark.parametrize(("name", "settings"), SMALL)
@pytest.mark.parametrize("size", [(1, 8, 8), (1, 28, 28), (3, 15, 20)])
@pytest.mark.slow
def test_any_size_and_number_of_channels(name: str, settings: dict[str, Any], size: tuple[int, int, int]) -> None:
    shape = ImageShape(*size, classes=7)
    network = build_weightless(name, shape, **settings).eval()
    assert network(torch.empty(2, *size, device="meta")).shape == (2, 7)


@pytest.mark.parametrize(("name", "settings"), SMALL)
def test_one_example_does_not_see_its_neighbors(name: str, settings: dict[str, Any]) -> None:
    shape = ImageShape(3, 16, 16, 10)
    network, x = build_small(name, shape, **settings), images(shape, count=3)
    torch.testing.assert_close(network(x)[1:2], network(x[1:2]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "settings"), SMALL)
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_gradients_reach_the_image_with_frozen_weights(name: str, settings: dict[str, Any], activation: str) -> None:
    shape = ImageShape(3, 16, 16, 10)
    network = build_small(name, shape, activation=activation, **settings).train().requires_grad_(False)
    network = network.to(memory_format=torch.channels_last)
    x = images(shape, count=4).contiguous(memory_format=torch.channels_last).requires_grad_(True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(x)
    (grad,) = torch.autograd.grad(F.cross_entropy(logits.float(), torch.arange(4)), x)
    assert torch.isfinite(grad).all()
    assert grad.flatten(1).abs().amax(1).gt(0).all()


@pytest.mark.parametrize(("name", "settings"), SMALL)
def test_activation_is_used_everywhere(name: str, settings: dict[str, Any]) -> None:
    shape = ImageShape(3, 8, 8, 3)
    network = build_small(name, shape, activation="softplus", **settings)
    assert not any(isinstance(module, nn.ReLU) for module in network.modules())
    relu = build(name, shape, activation="relu", **settings).eval()
    relu.load_state_dict(network.state_dict(), strict=True)
    x = images(shape)
    assert not torch.allclose(network(x), relu(x), atol=1e-3)


@pytest.mark.parametrize(("depth", "nearest"), [(27, 28), (29, 28), (33, 34), (4, 10), (1, 10)])
def test_depth_that_is_not_6n_plus_4_is_refused(depth: int, nearest: int) -> None:
    with pytest.raises(RobustCliError, match=rf"depth: {depth} is not 6 n \+ 4 .*; try {nearest}$"):
        build("wide_resnet", depth=depth)


@pytest.mark.parametrize("size", [(3, 8), (8, 3), (2, 2)])
def test_image_too_small_for_small_cnn_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(RobustCliError, match=f"{size[0]}x{size[1]} pixels.*at least 4x4"):
        build("small_cnn", ImageShape(1, *size, classes=10))
    build("small_cnn", ImageShape(1, 4, 4, classes=10))


@pytest.mark.parametrize(
    ("shape", "model", "message"),
    [
        (CIFAR, "resnet19", "no classifier 'resnet19'; did you mean 'resnet1"),
        (CIFAR, "fcn_resnet50", "'fcn_resnet50' does not classify"),
        (CIFAR, "r3d_18", "'r3d_18' does not classify"),
        (ImageShape(1, 32, 32, 10), "resnet18", "3 channels, but the data has 1"),
        (CIFAR, "alexnet", "'alexnet' cannot take images of 32x32 pixels"),
        (ImageShape(3, 32, 48, 10), "vit_b_32", r"32x48 pixels \(it needs square images\)"),
        (ImageShape(3, 40, 40, 10), "vit_b_32", "'vit_b_32' cannot take images of 40x40"),
    ],
)
def test_torchvision_refuses_what_it_cannot_build(shape: ImageShape, model: str, message: str) -> None:
    with pytest.raises(RobustCliError, match=message):
        build("torchvision", shape, model=model)


def test_torchvision_networks_with_auxiliary_outputs_return_logits_in_training() -> None:
    for model, side in (("googlenet", 32), ("inception_v3", 75)):
        shape = ImageShape(3, side, side, 7)
        network = build_weightless("torchvision", shape, model=model)
        assert network.training
        assert not [key for key in network.state_dict() if key.lower().startswith("aux")]
        logits = network(torch.empty(2, 3, side, side, device="meta"))
        assert isinstance(logits, Tensor)
        assert logits.shape == (2, 7)


def test_torchvision_transformer_is_built_for_the_images() -> None:
    network = build_weightless("torchvision", ImageShape(3, 64, 64, 5), model="vit_b_32")
    assert network(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 5)


def test_trying_a_torchvision_network_leaves_it_as_built() -> None:
    settings = describe("architectures", "torchvision").smoke
    torch.manual_seed(0)
    network = build("torchvision", **settings)
    torch.manual_seed(0)
    untried = models.get_model(settings["model"], weights=None, num_classes=10)
    assert network.training
    for key, value in untried.state_dict().items():
        assert torch.equal(network.state_dict()[key], value), key
