"""Weights, cost and sight of a network, against published counts and gradients."""

from typing import Any

import pytest
import torch
from test_architectures import CIFAR, build, build_weightless, count_macs, count_parameters
from torch import nn

from robustcli.architectures import ImageShape
from robustcli.architectures.anatomy import anatomy


def test_resnet18_in_parts() -> None:
    found = anatomy(build_weightless("resnet18"), CIFAR)
    assert found.parameters == 11_173_962
    assert round(found.macs / 1e9, 4) == 0.5554
    assert [(part.size, part.channels, part.field) for part in found.parts] == [
        ((32, 32), 64, 11),
        ((16, 16), 128, 25),
        ((8, 8), 256, 53),
        ((4, 4), 512, 109),
        ((1, 1), 10, None),
    ]
    assert sum(part.parameters for part in found.parts) == found.parameters
    assert [part.macs for part in found.parts][-1] == 5120
    # Stage 1 and the stem: 27 * 64 + 4 * 9 * 64 * 64 weights at every pixel.
    assert found.parts[0].macs == 1024 * (27 * 64 + 36 * 64 * 64)


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
    found = anatomy(network, CIFAR)
    assert found.parameters == count_parameters(network)
    # Two affine weights for each input of the first norm of robust blocks that project nothing.
    never_used = 2 * 4 * (2 * 16 + 2 * 32 + 64) if name == "robust_resnet" else 0
    assert sum(part.parameters for part in found.parts) == found.parameters - never_used
    assert found.macs == count_macs(build_weightless(name, **settings), CIFAR)
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
        found = anatomy(build(name, shape, **settings), shape)
    assert max(seen) == found.parts[-2].field


@pytest.mark.parametrize(
    "settings", [{"channel_gate": "se"}, {"downsample": "flc"}, {"norm": "conv"}, {"norm": "group"}]
)
def test_some_layers_see_the_whole_image(settings: dict[str, Any]) -> None:
    assert anatomy(build_weightless("resnet18", **settings), CIFAR).parts[-2].field is None


def test_an_enlarged_image_is_seen_in_smaller_pieces() -> None:
    plain, enlarged = (anatomy(build_weightless("resnet18", upsample=factor), CIFAR).parts for factor in (1, 2))
    assert [part.field for part in enlarged] == [6, 13, 27, 55, None]
    assert [part.field for part in plain] == [11, 25, 53, 109, None]


def test_a_linear_layer_costs_as_much_as_there_are_tokens() -> None:
    shape = ImageShape(3, 4, 4, 10)
    with torch.device("meta"):
        tokens = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Flatten(2), nn.Linear(16, 7), nn.Flatten(), nn.Linear(35, 10))
    assert anatomy(tokens, shape).macs == 16 * 3 * 5 + 5 * 16 * 7 + 35 * 10
