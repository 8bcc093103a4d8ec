"""Architectures give the same logits however they are computed: precision, memory layout, compiled; at every size."""

from typing import Any

import pytest
import torch
from members import Settings, build, names_of, suitable_shape
from small_networks import drawn_from
from torch import Tensor, nn

from robustcli.architectures import ImageShape
from robustcli.catalog import catalog
from robustcli.formats import to_channels_last

# Every architecture in its cheapest form, and layers that these do not have.
FORMS: list[tuple[str, Settings]] = [
    *((name, catalog("architectures")[name].smoke) for name in names_of("architectures")),
    ("resnet18", {"width": 4, "norm": "conv"}),
    ("resnet18", {"width": 4, "norm": "conv_running", "activation": "relu_smooth_backward"}),
    ("resnet18", {"width": 4, "norm": "group", "channel_gate": "se"}),
    ("resnet18", {"width": 4, "channel_gate": "cifs"}),
    ("preact_resnet18", {"width": 4, "form": "c", "downsample": "flc"}),
    ("preact_resnet18", {"width": 4, "downsample": "asap", "activation": "smooth_relu"}),
    ("wide_resnet", {"depth": 10, "widen": 1, "activation": "pssilu"}),
    ("robnet", {"width": 2, "cells": 3, "norm": "group", "downsample": "flc", "activation": "silu"}),
    ("sknet", {"width": 4, "norm": "group", "channel_gate": "cifs"}),
    ("wide_resnet", {"depth": 10, "widen": 1, "form": "deepmind", "activation": "sparta_like"}),
]


def told(form: tuple[str, Settings]) -> str:
    name, settings = form
    return "-".join([name, *(str(value) for value in settings.values() if isinstance(value, str))])


def network_and_images(name: str, settings: Settings) -> tuple[nn.Module, Tensor]:
    """In eval mode, with four images."""
    member = catalog("architectures")[name]
    shape = suitable_shape(member, settings)
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


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS, ids=told)
def test_compiling_changes_nothing(form: tuple[str, Settings]) -> None:
    """Of the graph alone: without a backend that makes code of it."""
    network, x = network_and_images(*form)
    torch.compiler.reset()
    compiled = torch.compile(network, backend="eager")
    with torch.no_grad():
        expected = network(x)
        torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("side", [32, 64, 224])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("resnet18", {"width": 4}),
        ("resnet50", {"width": 4}),
        ("preact_resnet18", {"width": 4}),
        ("preact_resnet18", {"width": 4, "form": "dm"}),
        ("wide_resnet", {"depth": 10, "widen": 1}),
        ("vgg11", {"width": 4}),
        ("alexnet", {"width": 4}),
    ],
)
def test_images_of_every_usual_size_are_taken(name: str, settings: dict[str, Any], side: int) -> None:
    with drawn_from(0):
        network = build(catalog("architectures")[name], settings, ImageShape(3, side, side, 7)).eval()
        x = torch.rand(2, 3, side, side)
    with torch.no_grad():
        logits = network(x)
    assert logits.shape == (2, 7)
    assert torch.isfinite(logits).all()
    assert not torch.equal(logits[0], logits[1])
