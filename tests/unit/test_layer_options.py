"""Options of layers: structure, cost, and unchanged defaults."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import CIFAR, build, build_weightless, count_macs, count_parameters
from torch import nn

from robustcli.architectures import ImageShape
from robustcli.architectures.cells import CellNetwork
from robustcli.architectures.channel_gates import gates_of
from robustcli.architectures.downsampling import Pooled, SpectralPool
from robustcli.architectures.layers import Layers
from robustcli.architectures.operations import OPERATIONS, Halved, projected
from robustcli.architectures.squeeze import ResidualSqueezeExcitation, SqueezeExcitation
from robustcli.architectures.supernet import Supernet
from robustcli.registry.catalog import catalog
from robustcli.specs.spec import ExperimentSpec

Settings = dict[str, Any]
GENES: Settings = {
    "normal": ("sep3 0 + skip 1", "dil3 1 + avg 2"),
    "reduce": ("max 0 + dil5 1", "skip 0 + sep5 2"),
    "width": 4,
    "cells": 4,
}
CELLS = [
    ("cell_network", GENES),
    ("robnet", {"width": 4, "cells": 4}),
    ("arnas", {"width": 4, "cells": 4}),
    ("dsara", {"width": 2, "cells": 4, "nodes": 2}),
]
WIDE: Settings = {"depths": (1, 1, 1), "widths": (32, 32, 32), "stem": 4}
FAMILIES = [
    *CELLS,
    ("robust_arch_wide_resnet", WIDE),
    ("robust_arch_resnet50", {"width": 16}),
    ("sknet", {"width": 8}),
    ("sknet", {"width": 8, "depth": 50}),
    ("regnet", {"size": "y_400mf"}),
    ("regnet_stages", {"depths": (1, 2), "widths": (8, 16), "strides": (1, 2)}),
]


def modules(network: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, kind)]


@pytest.mark.parametrize(("name", "settings"), FAMILIES)
@pytest.mark.slow
def test_pooled_ones_cost_what_strided_ones_do(name: str, settings: Settings) -> None:
    plain = build_weightless(name, **settings)
    macs = count_macs(plain, CIFAR)
    for downsample in ("average", "flc", "asap"):
        pooled = build_weightless(name, **settings, downsample=downsample)
        assert count_parameters(pooled) == count_parameters(plain)
        assert count_macs(pooled, CIFAR) == macs
        assert all(conv.stride == (1, 1) for conv in modules(pooled, nn.Conv2d))
        assert modules(pooled, Pooled)


@pytest.mark.parametrize(("name", "settings"), [family for family in FAMILIES if "regnet" not in family[0]])
def test_group_norms_have_the_weights_of_batch_norms(name: str, settings: Settings) -> None:
    plain, grouped = (build_weightless(name, **settings, norm=norm) for norm in ("batch", "group"))
    assert count_parameters(grouped) == count_parameters(plain)
    assert not modules(grouped, nn.BatchNorm2d)
    assert len(modules(grouped, nn.GroupNorm)) == len(modules(plain, nn.BatchNorm2d))
    batch_norms, group_norms = modules(plain, nn.BatchNorm2d), modules(grouped, nn.GroupNorm)
    assert [norm.affine for norm in batch_norms] == [norm.affine for norm in group_norms]


@pytest.mark.parametrize(("name", "settings"), CELLS)
def test_cells_have_the_activation_everywhere(name: str, settings: Settings) -> None:
    plain, learned = (build_weightless(name, **settings, activation=each) for each in ("relu", "smooth_relu"))
    places = len(modules(plain, nn.ReLU))
    assert places > 0
    assert not modules(learned, nn.ReLU)
    assert count_parameters(learned) == count_parameters(plain) + places
    shared = build_weightless(name, **settings, activation="pssilu")
    assert count_parameters(shared) == count_parameters(plain) + 2


@pytest.mark.parametrize(("name", "settings"), CELLS)
@pytest.mark.parametrize("choice", [{"norm": "group"}, {"activation": "silu"}, {"downsample": "flc"}])
@pytest.mark.slow
def test_cells_with_options_take_odd_sides_and_see_one_image_at_a_time(
    name: str, settings: Settings, choice: Settings
) -> None:
    torch.manual_seed(0)
    shape = ImageShape(1, 13, 9, 3)
    network = build(name, shape, **settings, **choice)
    x = torch.rand(3, 1, 13, 9)
    network(x).sum().backward()
    network.eval()
    with torch.no_grad():
        alone = torch.cat([network(image[None]) for image in x])
        torch.testing.assert_close(network(x), alone, atol=1e-4, rtol=1e-3)


def test_groups_need_no_other_images_in_training_either() -> None:
    torch.manual_seed(0)
    for name, settings in [*CELLS, ("sknet", {"width": 8}), ("robust_arch_wide_resnet", WIDE)]:
        network = build(name, **settings, norm="group").train()
        x = torch.rand(2, 3, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(network(x)[:1], network(x[:1]), atol=1e-4, rtol=1e-3)


def test_a_halving_skip_pools_and_projects() -> None:
    torch.manual_seed(0)
    layers, x = Layers(downsample="flc", activation="silu", affine=False), torch.randn(2, 4, 8, 8)
    for skip, outputs in ((OPERATIONS["skip"](4, 2, layers), 4), (projected(4, 6, layers, 2), 6)):
        weight = dict(skip.named_parameters())["1.layer.weight"]
        expected = F.conv2d(SpectralPool(windowed=False)(F.silu(x)), weight)
        assert expected.shape == (2, outputs, 4, 4)
        torch.testing.assert_close(skip.eval()(x), expected / (1 + 1e-5) ** 0.5)
    assert isinstance(OPERATIONS["skip"](4, 2, Layers()), Halved)
    assert isinstance(OPERATIONS["skip"](4, 1, layers), nn.Identity)
    assert isinstance(OPERATIONS["max"](4, 2, layers), nn.MaxPool2d), "what a cell chose halves by itself"


def test_the_first_convolution_of_cells_has_a_norm_with_scale_and_shift() -> None:
    for norm in ("batch", "group"):
        network = build_weightless("robnet", width=2, cells=3, norm=norm)
        assert isinstance(network, CellNetwork)
        affine = [module.affine for module in network.modules() if isinstance(module, nn.BatchNorm2d | nn.GroupNorm)]
        assert affine == [True] + [False] * (len(affine) - 1)


def test_a_search_hands_its_layers_to_what_it_finds() -> None:
    choices = {"activation": "silu", "norm": "group", "downsample": "asap"}
    supernet = build("dsara", ImageShape(1, 8, 8, 10), width=2, cells=4, nodes=1, **choices)
    assert isinstance(supernet, Supernet)
    derived = supernet.derived()
    assert derived.items() >= choices.items()
    found = build(derived.pop("name"), ImageShape(1, 8, 8, 10), **derived)
    assert len(modules(found, SpectralPool)) > 0
    assert len(modules(found, nn.SiLU)) > 0
    assert all(module.affine for module in modules(found, nn.GroupNorm))


def test_norms_of_means_are_one_group() -> None:
    """With two channels in a group only their order would remain."""
    norm = Layers(norm="group").normalization(16, of_means=True)
    assert isinstance(norm, nn.GroupNorm)
    assert norm.num_groups == 1
    attention = build_weightless("sknet", width=8, norm="group").get_submodule("layer1.0.conv1.attn.bn")
    assert isinstance(attention, nn.GroupNorm)
    assert attention.num_groups == 1


# Gates

# By family, the channels of every gate.
GATED = [
    ("sknet", {"width": 8}, [8, 8, 16, 16, 32, 32, 64, 64]),
    ("sknet", {"width": 4, "depth": 50}, [16] * 3 + [32] * 4 + [64] * 6 + [128] * 3),
    ("regnet_stages", {"depths": (1, 2), "widths": (8, 16), "strides": (1, 2)}, [8, 16, 16]),
    ("regnet", {"size": "y_400mf"}, [32, 64, 64] + [160] * 7 + [384] * 12),
    ("small_cnn", {}, [16, 32]),
]


@pytest.mark.parametrize(("name", "settings", "channels"), GATED)
def test_gates_add_their_weights(name: str, settings: Settings, channels: list[int]) -> None:
    plain = count_parameters(build_weightless(name, **settings))
    gated = build_weightless(name, **settings, channel_gate="cifs")
    assert [gate.probe.last.in_features for gate in gates_of(gated)] == channels
    assert count_parameters(gated) == plain + sum(10 * c + 10 for c in channels)
    squeezed = [(c, max(1, c // 16)) for c in channels]
    added = sum(2 * c * inner + c + inner for c, inner in squeezed)
    assert count_parameters(build_weightless(name, **settings, channel_gate="se")) == plain + added
    # Two layers without biases, and a norm where the network has norms.
    residual = build_weightless(name, **settings, channel_gate="residual_se")
    norms = 0 if name == "small_cnn" else 2
    added = sum(2 * c * max(1, c // 64) + norms * c for c in channels)
    assert count_parameters(residual) == plain + added
    assert len(modules(residual, ResidualSqueezeExcitation)) == len(channels)


@pytest.mark.parametrize(
    ("name", "settings", "block", "channels"),
    [
        ("sknet", {"width": 8}, "layer1.1", 8),
        ("sknet", {"width": 4, "depth": 50}, "layer1.1", 16),
        ("regnet_stages", {"depths": (2,), "widths": (8,), "strides": (1,)}, "trunk_output.block1.block1-1", 8),
    ],
)
def test_a_closed_gate_leaves_the_shortcut(name: str, settings: Settings, block: str, channels: int) -> None:
    torch.manual_seed(0)
    found = build(name, channel_gate="se", **settings).eval().get_submodule(block)
    x = torch.rand(2, channels, 6, 6)
    assert not torch.allclose(found(x), x)
    closed = found.get_submodule("gate")
    assert isinstance(closed, SqueezeExcitation)
    with torch.no_grad():
        closed.fc2.weight.zero_()
        closed.fc2.bias.fill_(-100)
    torch.testing.assert_close(found(x), x)


def test_a_closed_gate_leaves_nothing_of_a_small_network() -> None:
    torch.manual_seed(0)
    network, x = build("small_cnn", channel_gate="se"), torch.rand(2, 3, 32, 32)
    assert [name for name in build("small_cnn").state_dict() if "weight" in name] == [
        "0.weight",
        "2.weight",
        "5.weight",
        "7.weight",
    ]
    closed = modules(network, SqueezeExcitation)[-1]
    assert isinstance(closed, SqueezeExcitation)
    with torch.no_grad():
        closed.fc2.weight.zero_()
        closed.fc2.bias.fill_(-100)
    torch.testing.assert_close(network(x)[0], network(x)[1])


# The identity of runs

# By family, the digest of a spec that was written before it had these options.
DIGESTS = {
    "advrush": "4bfb8aa6",
    "arnas": "3cf902f9",
    "cell_network": "ac0445ae",
    "darts_v2": "213ddbed",
    "dsara": "b659015d",
    "racl": "dee3be1c",
    "regnet": "4ba29483",
    "regnet_rule": "e0b15f91",
    "regnet_stages": "0ac4daec",
    "robnet": "5ffe0675",
    "robust_arch_resnet101": "cda0c746",
    "robust_arch_resnet50": "aeeabd3f",
    "robust_arch_wide_resnet": "10768424",
    "robust_arch_wide_resnet101_2": "9f899959",
    "sknet": "25d8f038",
    "small_cnn": "341f68c4",
}
SPEC = """\
name: d
data: {{name: cifar10, root: x}}
architecture: {architecture}
threat: {{norm: linf, eps: 8/255}}
defense: {defense}
train: {{epochs: 2}}
"""


@pytest.mark.parametrize("name", DIGESTS)
def test_what_is_left_out_leaves_a_spec_what_it_was(name: str) -> None:
    defense = "dsara" if name == "dsara" else "pgd_at"
    given = ["name: " + name, *(["normal: [skip 0], reduce: [skip 1]"] if name == "cell_network" else [])]

    def digest(*more: str) -> str:
        text = SPEC.format(architecture="{" + ", ".join([*given, *more]) + "}", defense=defense)
        return ExperimentSpec.parse(text, "the test").digest

    assert digest() == DIGESTS[name]
    for option, usual, other in (
        ("activation", "relu", "elu"),
        ("norm", "batch", "group"),
        ("downsample", "strided", "flc"),
        ("channel_gate", "none", "se"),
    ):
        if option in catalog("architectures")[name].parameters:
            if catalog("architectures")[name].parameters[option].default == usual:
                assert digest(f"{option}: {usual}") == DIGESTS[name]
            assert digest(f"{option}: {other}") != DIGESTS[name]
