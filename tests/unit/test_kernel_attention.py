"""Attention between kernel sizes: a mean computed by hand, and the images that the network sees."""

from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustcli.architectures import ImageShape
from robustcli.architectures.sknet import BranchAttention, sknet
from robustcli.contracts.networks import conv_net, drawn_from, images, labels
from robustcli.diagnostics.kernel_attention import KernelAttention
from robustcli.errors import RobustCliError
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel


def network() -> nn.Module:
    """A network whose attention is far from even."""
    with drawn_from(3):
        model = sknet(ImageShape(1, 8, 8, 10), width=4).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, BranchAttention):
            module.fc_select.weight *= 1000
    return model


def found(model: nn.Module, x: Tensor, **settings: Any) -> dict[str, Any]:
    noise = IndexedNoise(0, torch.arange(len(x)))
    return KernelAttention(**settings)(model, x, labels(len(x)), ThreatModel("linf", Fraction(1, 10)), noise)


def test_it_is_the_mean_share_of_the_dilated_branch() -> None:
    model, x = network(), images(5)
    shares: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, BranchAttention):
            module.register_forward_hook(lambda _module, _inputs, out: shares.append(out[1]))
    model(x)
    expected = float(torch.stack([share.mean() for share in shares]).mean())
    result = found(model, x, scales=(1.0,), batch_size=2)
    assert len(result["units"]) == 8
    assert result["curve"][0]["larger"] == pytest.approx(expected, abs=1e-6)
    assert result["curve"][0]["larger"] != pytest.approx(0.5, abs=1e-4)


def test_enlarged_images_show_their_middle_and_small_ones_a_black_border() -> None:
    """Enlarging removes a frame around black; shrinking puts a white image into a black border."""
    frame, black, white = torch.zeros(3, 2, 1, 8, 8).unbind()
    frame[..., (0, 7), :], frame[..., :, (0, 7)] = 1, 1
    white[:] = 1
    square = torch.zeros(2, 1, 8, 8)
    square[..., 2:6, 2:6] = 1
    model = network()
    by_scale = [row["larger"] for row in found(model, frame, scales=(2.5, 1.0))["curve"]]
    plain = {name: found(model, x, scales=(1.0,))["curve"][0]["larger"] for name, x in (("b", black), ("s", square))}
    assert by_scale[1] == pytest.approx(plain["b"], abs=1e-6)
    assert by_scale[0] != pytest.approx(plain["b"], abs=1e-6)
    shrunk = found(model, white, scales=(0.5,))["curve"][0]["larger"]
    assert shrunk == pytest.approx(plain["s"], abs=1e-6) != pytest.approx(plain["b"], abs=1e-6)


def test_units_have_their_change() -> None:
    result = found(network(), images(4), scales=(1.0, 2.0))
    small, large = (row["larger"] for row in result["curve"])
    assert sum(unit["change"] for unit in result["units"]) / 8 == pytest.approx(large - small, abs=1e-6)
    assert large != pytest.approx(small, abs=1e-6)


def test_other_networks_have_no_units() -> None:
    result = found(conv_net().eval(), images(3))
    assert result["units"] == []
    assert [row["larger"] for row in result["curve"]] == [None, None, None]


def test_no_scale_is_refused() -> None:
    with pytest.raises(RobustCliError, match="kernel_attention: scales is empty"):
        KernelAttention(scales=())
