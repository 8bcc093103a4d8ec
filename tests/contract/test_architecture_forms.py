"""Architectures give the same logits in every precision and memory layout, compiled or not, at every size."""

from collections.abc import Callable

import pytest
import torch
from members import names_of, shape_for
from torch import Tensor, nn

from robustcli.architectures import ImageShape
from robustcli.contracts import architectures as architectures_contract
from robustcli.contracts.build import Settings, build, builder
from robustcli.contracts.networks import drawn_from
from robustcli.registry.catalog import catalog
from robustcli.runtime.memory_format import to_channels_last

pytestmark = pytest.mark.slow

Check = Callable[[architectures_contract.Body, ImageShape], None]

CHEAPEST: list[tuple[str, Settings]] = [
    (name, catalog("architectures")[name].smoke) for name in names_of("architectures")
]
# With layers that the above do not have.
OTHERS: list[tuple[str, Settings]] = [
    ("resnet18", {"width": 4, "norm": "conv"}),
    ("wide_resnet", {"depth": 10, "widen": 1, "norm": "conv_running", "activation": "relu_smooth_backward"}),
    # Wide enough for gates of several units, since the gradient of a single unit may be zero.
    ("wide_resnet", {"depth": 10, "widen": 4, "norm": "group", "channel_gate": "se"}),
    ("preact_resnet18", {"width": 4, "form": "dm", "channel_gate": "cifs"}),
    ("preact_resnet18", {"width": 4, "form": "a", "downsample": "asap", "activation": "sparta_like"}),
    ("preact_resnet18", {"width": 4, "form": "c", "downsample": "flc", "activation": "smooth_relu"}),
    ("wide_resnet", {"depth": 10, "widen": 1, "activation": "pssilu"}),
    ("robnet", {"width": 2, "cells": 3, "norm": "group", "downsample": "flc", "activation": "silu"}),
    ("sknet", {"width": 4, "norm": "group", "channel_gate": "cifs"}),
    ("wide_resnet", {"depth": 10, "widen": 1, "form": "deepmind", "activation": "sparta_like"}),
]
FORMS = [*CHEAPEST, *OTHERS]


def told(form: tuple[str, Settings]) -> str:
    name, settings = form
    return "-".join([name, *(str(value) for value in settings.values() if isinstance(value, str))])


def network_and_images(name: str, settings: Settings) -> tuple[nn.Module, Tensor]:
    """In eval mode, with four images."""
    member = catalog("architectures")[name]
    shape = shape_for(member, settings)
    with drawn_from(0):
        network: nn.Module = build(member, settings, shape)
        x = torch.rand(4, shape.channels, shape.height, shape.width)
    return network.eval(), x


@pytest.mark.parametrize("form", FORMS, ids=told)
def test_bf16_logits_are_near_those_of_fp32(form: tuple[str, Settings]) -> None:
    network, x = network_and_images(*form)
    with torch.no_grad():
        exact = network(x)
        with torch.autocast("cpu", torch.bfloat16):
            rough = network(x).float()
    assert torch.isfinite(rough).all()
    assert not torch.equal(rough, exact)
    assert float((rough - exact).abs().max()) <= 0.05 * float(exact.abs().max())


@pytest.mark.parametrize("form", FORMS, ids=told)
def test_channels_last_changes_nothing(form: tuple[str, Settings]) -> None:
    network, x = network_and_images(*form)
    with torch.no_grad():
        expected = network(x)
        logits = to_channels_last(network)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def smallest_layers(network: nn.Module, known: set[type]) -> dict[type, nn.Module]:
    """The smallest layer of every further class of the package inside a network."""
    inner = [layer for layer in network.modules() if layer is not network]
    by_size = sorted(inner, key=lambda layer: -len([*layer.modules()]))
    found = {type(layer): layer for layer in by_size if type(layer).__module__.startswith("robustcli.")}
    return {kind: layer for kind, layer in found.items() if kind not in known}


def test_compiling_changes_nothing_in_any_layer() -> None:
    """For blocks, gates, activations and so on, one of each class; whole networks belong to the full run."""
    known: set[type] = set()
    for form in FORMS:
        network, x = network_and_images(*form)
        layers = smallest_layers(network, known)
        with torch.no_grad():
            expected = network(x)
            torch.compiler.reset()
            for layer in layers.values():
                layer.compile(backend="eager")
            torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
        known |= set(layers)
    assert len(known) > 20


@pytest.mark.full
@pytest.mark.parametrize("form", FORMS, ids=told)
def test_compiling_changes_nothing(form: tuple[str, Settings]) -> None:
    """Tests only the graph, without a code-generating backend."""
    network, x = network_and_images(*form)
    torch.compiler.reset()
    compiled = torch.compile(network, backend="eager")
    with torch.no_grad():
        expected = network(x)
        torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("form", OTHERS, ids=told)
@pytest.mark.parametrize(
    "check",
    [
        architectures_contract.gives_logits,
        architectures_contract.treats_each_image_alone,
        architectures_contract.every_parameter_learns,
        architectures_contract.is_drawn_from_the_seed,
    ],
    ids=lambda check: check.__name__,
)
def test_other_layers_fulfill_the_contract(form: tuple[str, Settings], check: Check) -> None:
    name, settings = form
    member = catalog("architectures")[name]
    check(builder(member, settings), shape_for(member, settings))


@pytest.mark.parametrize("side", [32, pytest.param(64, marks=pytest.mark.full), 224])
@pytest.mark.parametrize("form", [*CHEAPEST, ("preact_resnet18", {"width": 4, "form": "dm"})], ids=told)
def test_images_of_every_usual_size_are_taken(form: tuple[str, Settings], side: int) -> None:
    name, settings = form
    with drawn_from(0):
        network = build(catalog("architectures")[name], settings, ImageShape(3, side, side, 7)).eval()
        x = torch.rand(2, 3, side, side)
    with torch.no_grad():
        logits = network(x)
    assert logits.shape == (2, 7)
    assert torch.isfinite(logits).all()
    assert not torch.equal(logits[0], logits[1])
