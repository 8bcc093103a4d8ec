"""Parameters, cost and receptive field of a network, against published counts and gradients."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import CIFAR, IMAGENET, build, build_weightless, count_parameters
from torch import Tensor, nn

from robustcli.architectures import ImageShape
from robustcli.measuring.network_profile import network_profile


def test_resnet18_in_parts() -> None:
    found = network_profile(build_weightless("resnet18"), CIFAR)
    assert found.parameters == 11_173_962
    assert round(found.macs / 1e9, 4) == 0.5554
    assert [(part.name, part.size, part.channels, part.field) for part in found.parts] == [
        ("stem", (32, 32), 64, 3),
        ("layer1", (32, 32), 64, 11),
        ("layer2", (16, 16), 128, 25),
        ("layer3", (8, 8), 256, 53),
        ("layer4", (4, 4), 512, 109),
        ("head", (1, 1), 10, None),
    ]
    assert sum(part.parameters for part in found.parts) == found.parameters
    assert [part.macs for part in found.parts][-1] == 5120
    # 27 * 64 and 4 * 9 * 64 * 64 weights at every pixel.
    assert [part.macs for part in found.parts][:2] == [1024 * 27 * 64, 1024 * 36 * 64 * 64]


def test_stages_of_one_resolution_are_distinguished() -> None:
    late = network_profile(build_weightless("resnet18", strides=(1, 1, 2, 2)), CIFAR).parts
    assert [(part.name, part.size) for part in late][1:3] == [("layer1", (32, 32)), ("layer2", (32, 32))]
    assert [(part.size, part.channels) for part in network_profile(build_weightless("regnet"), CIFAR).parts] == [
        ((32, 32), 64),
        ((32, 32), 24),
        ((32, 32), 56),
        ((16, 16), 152),
        ((8, 8), 368),
        ((1, 1), 10),
    ]


@pytest.mark.parametrize(
    ("name", "settings", "named"),
    [
        ("wide_resnet", {"depth": 10, "widen": 1}, ["block1", "block2", "block3"]),
        ("wide_resnet", {"depth": 10, "widen": 1, "form": "deepmind"}, ["layer.0", "layer.1", "layer.2"]),
        ("robust_resnet", {"depths": (1, 1, 1), "widths": (1, 1, 1)}, ["blocks.0", "blocks.1", "blocks.2"]),
        ("convnext", {"depths": (1, 1, 1, 1), "widths": (4, 4, 4, 4)}, [f"stages.{i}" for i in range(4)]),
    ],
)
def test_stages_have_the_names_of_their_modules(name: str, settings: dict[str, Any], named: list[str]) -> None:
    parts = network_profile(build_weightless(name, **settings), CIFAR).parts
    assert [part.name for part in parts] == ["stem", *named, "head"]


@pytest.mark.parametrize("name", ["vgg11", "advrush", "vit", "xcit", "small_cnn"])
def test_networks_without_stages_are_divided_by_map_size(name: str) -> None:
    parts = network_profile(build_weightless(name), CIFAR).parts
    assert {part.name for part in parts} == {""}
    areas = [math.prod(part.size) for part in parts]
    assert areas == sorted(set(areas), reverse=True)


def test_layouts_are_read_whatever_comes_last() -> None:
    """Perceptrons on channels-last maps, tokens, and the class token alone."""
    convnext = network_profile(build_weightless("convnext"), CIFAR).parts
    assert [(part.size, part.channels, part.field) for part in convnext] == [
        ((32, 32), 96, 1),
        ((32, 32), 384, 19),
        ((16, 16), 768, 56),
        ((8, 8), 1536, 274),
        ((4, 4), 3072, 422),
        ((1, 1), 10, None),
    ]
    xcit = network_profile(build_weightless("xcit", width=16, heads=2, depth=1), CIFAR).parts
    assert [(part.size, part.channels) for part in xcit] == [((32, 32), 4), ((16, 16), 8), ((8, 8), 64), ((1, 1), 64)]
    # The projections of both class blocks, their perceptrons, and the classifier are of one token.
    assert xcit[-1].macs == 2 * (2 * 16 * 16 + 8 * 16 * 16) + 160
    vit = network_profile(build_weightless("vit", width=16, heads=2, depth=1), CIFAR).parts
    assert [(part.size, part.channels) for part in vit] == [((8, 8), 64), ((1, 1), 10)]
    swin = network_profile(build_weightless("torchvision", IMAGENET, model="swin_t"), IMAGENET).parts
    assert [(part.size, part.channels) for part in swin] == [
        ((56, 56), 384),
        ((28, 28), 768),
        ((14, 14), 1536),
        ((7, 7), 3072),
        ((1, 1), 1000),
    ]


class Products(nn.Module):
    """One product of each kind, on a map of 4 tokens of width 3."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3, 5))
        self.register_buffer("fixed", torch.empty(3, 7))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        seen = F.scaled_dot_product_attention(tokens, tokens, tokens) + (tokens @ tokens.mT) @ tokens
        return (seen @ self.weight).sum((1, 2)) + (seen @ self.get_buffer("fixed")).sum((1, 2))


def test_products_count_unless_one_factor_is_fixed() -> None:
    with torch.device("meta"):
        found = network_profile(Products(), ImageShape(3, 2, 2, 1))
    attention = 2 * 4 * 4 * 3
    assert found.macs == 2 * attention + 4 * 3 * 5
    assert found.parameters == sum(part.parameters for part in found.parts) == 15


@pytest.mark.parametrize(
    ("name", "settings", "gigamacs"),
    [
        ("preact_resnet18", {"form": "c", "downsample": "flc"}, 0.5554),
        ("preact_resnet18", {"form": "c", "downsample": "asap"}, 0.5554),
        ("wide_resnet", {"activation": "pssilu"}, 5.2433),
        ("torchvision", {"model": "vit_b_16"}, 17.5638),
        ("torchvision", {"model": "swin_t"}, 4.4906),
        ("torchvision", {"model": "resnext50_32x4d"}, 4.2305),
    ],
)
def test_cost_is_the_published_one(name: str, settings: dict[str, Any], gigamacs: float) -> None:
    """For networks that no other test counts."""
    shape = IMAGENET if name == "torchvision" else CIFAR
    assert round(network_profile(build_weightless(name, shape, **settings), shape).macs / 1e9, 4) == gigamacs


def test_the_probes_of_cifs_count() -> None:
    with torch.device("meta"):
        found = network_profile(build("cifs", network=build("resnet18")), CIFAR)
    plain = network_profile(build_weightless("resnet18"), CIFAR)
    assert [part.name for part in found.parts] == ["stem", "layer1", "layer2", "layer3", "layer4", "head"]
    # Two forwards of the first probe's hidden layer and one backward; its last layer, and the linear probe.
    assert found.macs - plain.macs == 3 * 512 * 128 + 128 * 10 + 512 * 10
    assert found.parameters == 11_246_046


def counted_by_layers(network: nn.Module) -> int:
    """Counts only convolutions and linear layers."""
    total = 0

    def add(module: nn.Module, _: Any, out: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += out[0].numel() * module.weight[0].numel()
        if isinstance(module, nn.Linear):
            total += module.weight.numel()

    for module in network.modules():
        module.register_forward_hook(add)
    network.eval()(torch.empty(1, 3, 32, 32, device="meta"))
    return total


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("preact_resnet50", {}),
        ("wide_resnet", {"activation": "pssilu"}),
        ("wide_resnet", {"form": "deepmind", "channel_gate": "se"}),
        ("robust_resnet", {"depths": (3, 3, 2), "widths": (1, 1, 1)}),
        ("alexnet", {"strides": (1, 1, 2, 2)}),
        ("vgg16", {"norm": "conv"}),
        ("torchvision", {"model": "resnet18"}),
        ("small_cnn", {}),
        ("regnet", {"size": "y_400mf"}),
        ("sknet", {}),
    ],
)
def test_nothing_is_counted_twice_or_left_out(name: str, settings: dict[str, Any]) -> None:
    network = build_weightless(name, **settings)
    found = network_profile(network, CIFAR)
    assert found.parameters == count_parameters(network)
    # Two affine weights for each input of the first norm of robust blocks that project nothing.
    never_used = 2 * 4 * (2 * 16 + 2 * 32 + 64) if name == "robust_resnet" else 0
    assert sum(part.parameters for part in found.parts) == found.parameters - never_used
    assert found.macs == counted_by_layers(build_weightless(name, **settings))
    assert network.training


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("resnet18", {"width": 2, "strides": (1, 2, 1, 2)}),
        ("preact_resnet50", {"width": 1, "strides": (1, 1, 2, 1)}),
        ("vgg11", {"width": 2, "form": "kuangliu", "downsample": "average"}),
        ("wide_resnet", {"depth": 10, "widen": 1}),
    ],
)
@pytest.mark.slow
def test_a_pixel_of_the_last_map_sees_the_field_and_no_more(name: str, settings: dict[str, Any]) -> None:
    shape = ImageShape(1, 256, 256, 3)
    torch.manual_seed(0)
    network = build(name, shape, activation="softplus", **settings).double().eval()
    maps: list[torch.Tensor] = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _module, _inputs, out: maps.append(out))
    x = torch.rand(1, 1, 256, 256, dtype=torch.float64).requires_grad_()
    network(x)
    # Of the smallest maps the one that sees most: the last to be computed may be a shortcut's.
    seen = []
    for smallest in (found for found in maps if found.shape[2:] == maps[-1].shape[2:]):
        pixel = smallest[0, :, smallest.shape[2] // 2, smallest.shape[3] // 2].sum()
        (grad,) = torch.autograd.grad(pixel, x, retain_graph=True)
        rows = grad[0, 0].abs().amax(1).nonzero().flatten()
        seen.append(int(rows[-1] - rows[0]) + 1)
    with torch.device("meta"):
        found = network_profile(build(name, shape, **settings), shape)
    assert max(seen) == found.parts[-2].field


@pytest.mark.parametrize(
    "settings", [{"channel_gate": "se"}, {"downsample": "flc"}, {"norm": "conv"}, {"norm": "group"}]
)
def test_some_layers_see_the_whole_image(settings: dict[str, Any]) -> None:
    assert network_profile(build_weightless("resnet18", **settings), CIFAR).parts[-2].field is None


def test_an_enlarged_image_is_seen_in_smaller_pieces() -> None:
    plain, enlarged = (network_profile(build_weightless("resnet18", upsample=factor), CIFAR).parts for factor in (1, 2))
    assert [part.field for part in enlarged] == [2, 6, 13, 27, 55, None]
    assert [part.field for part in plain] == [3, 11, 25, 53, 109, None]


def test_a_linear_layer_costs_as_much_as_there_are_tokens() -> None:
    shape = ImageShape(3, 4, 4, 10)
    with torch.device("meta"):
        tokens = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Flatten(2), nn.Linear(16, 7), nn.Flatten(), nn.Linear(35, 10))
    assert network_profile(tokens, shape).macs == 16 * 3 * 5 + 5 * 16 * 7 + 35 * 10
