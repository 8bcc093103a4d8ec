"""Layers that plug into any convolutional family, against formulas, dense matrices and published counts."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import build, build_weightless, count_macs, count_parameters
from torch import Tensor, nn

from robustcli.architectures import ImageShape, downsampling
from robustcli.architectures.activations import ACTIVATIONS, PSSiLU, SmoothReLU, SpartaLike
from robustcli.architectures.channel_gates import gates_of
from robustcli.architectures.convnorm import PreconditionedConv2d
from robustcli.architectures.downsampling import Pooled, SpectralPool
from robustcli.architectures.layers import Layers
from robustcli.architectures.squeeze import ResidualSqueezeExcitation, SqueezeExcitation
from robustcli.errors import RobustCliError

CIFAR = ImageShape(3, 32, 32, 10)
Function = Callable[[Tensor], Tensor]

# Activations

X = torch.linspace(-6, 6, 97, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "function", "slope"),
    [
        ("psoftplus", lambda x: (1 + (10 * x).exp()).log() / 10, lambda x: (10 * x).sigmoid()),
        ("silu", lambda x: x * x.sigmoid(), lambda x: x.sigmoid() * (1 + x * (1 - x.sigmoid()))),
        ("gelu", lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2, None),
        ("elu", lambda x: torch.where(x >= 0, x, x.exp() - 1), lambda x: torch.where(x >= 0, 1, x.exp())),
        ("softplus", lambda x: (1 + x.exp()).log(), lambda x: x.sigmoid()),
        (
            "smooth_relu",
            lambda x: torch.where(x >= 0, x - (400 * x.abs() + 1).log() / 400, 0),
            lambda x: torch.where(x >= 0, 400 * x / (1 + 400 * x.abs()), 0),
        ),
        ("pssilu", lambda x: x * (x.sigmoid() - 1e-8) / (1 - 1e-8), None),
        ("sparta_like", lambda x: torch.tensor(2.0).double().sigmoid() * x.relu(), None),
        ("relu_smooth_backward", lambda x: x.clamp_min(0), lambda x: (10 * x).sigmoid()),
    ],
)
def test_activation_is_its_formula(name: str, function: Function, slope: Function | None) -> None:
    x = X.clone().requires_grad_()
    y = ACTIVATIONS[name]().double()(x)
    torch.testing.assert_close(y, function(X), atol=1e-6, rtol=1e-6)
    if slope is not None:
        (grad,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(grad, slope(X), atol=1e-6, rtol=1e-6)


def test_learned_parameters_of_activations_mean_what_the_formulas_say() -> None:
    pssilu, smooth = PSSiLU().double(), SmoothReLU().double()
    with torch.no_grad():
        pssilu.alpha.fill_(-3)
        pssilu.beta.fill_(-0.25)
        smooth.raw.fill_(-2)
    torch.testing.assert_close(pssilu(X), X * ((3 * X).sigmoid() - 0.25) / 0.75)
    torch.testing.assert_close(smooth(X), torch.where(X >= 0, X - (1 + 4 * X.abs()).log() / 4, 0))


@pytest.mark.parametrize("sharpness", [30.0, 1e3])
def test_a_sharp_activation_is_nearly_a_relu(sharpness: float) -> None:
    """The gap is largest near 0 for softplus and silu, and log(beta x) / beta far from it for SmoothReLU."""
    smooth, swish = SmoothReLU().double(), PSSiLU().double()
    with torch.no_grad():
        smooth.raw.fill_(sharpness**0.5)
        swish.alpha.fill_(sharpness)
        swish.beta.fill_(0)
    gaps = {
        "softplus": (nn.Softplus(sharpness), math.log(2) / sharpness),
        "smooth_relu": (smooth, math.log(1 + 6 * sharpness) / sharpness),
        "pssilu": (swish, 0.28 / sharpness),
    }
    x = torch.cat([X, X / sharpness])
    for name, (activation, bound) in gaps.items():
        gap = float((activation(x).detach() - x.relu()).abs().max())
        assert 0.5 * bound < gap < 1.0001 * bound, name


def _slopes(name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """First and second derivative of an activation, by two backward passes."""
    x = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(ACTIVATIONS[name]().double()(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    return first.detach(), second


@pytest.mark.parametrize(
    ("name", "left", "right"),
    [
        ("silu", 0.5, 0.5),
        ("gelu", (2 / math.pi) ** 0.5, (2 / math.pi) ** 0.5),
        ("softplus", 0.25, 0.25),
        ("psoftplus", 2.5, 2.5),
        ("relu_smooth_backward", 2.5, 2.5),
        ("pssilu", 0.5, 0.5),
        ("elu", 1.0, 0.0),
        ("smooth_relu", 0.0, 400.0),
    ],
)
def test_a_smooth_activation_has_one_slope_and_a_finite_curvature_at_0(name: str, left: float, right: float) -> None:
    beside = torch.tensor([-1e-9, 1e-9], dtype=torch.float64)
    slopes, curvatures = _slopes(name, beside)
    assert float((slopes[1] - slopes[0]).abs()) < 1e-6
    assert curvatures.tolist() == pytest.approx([left, right], rel=1e-4, abs=1e-4)
    _, at_zero = _slopes(name, torch.zeros(1, dtype=torch.float64))
    assert at_zero.isfinite().all()
    assert min(left, right) - 1e-4 <= float(at_zero) <= max(left, right) + 1e-4


def test_a_relu_has_two_slopes_at_0() -> None:
    x = torch.tensor([-1e-9, 1e-9], dtype=torch.float64).requires_grad_()
    (slopes,) = torch.autograd.grad(ACTIVATIONS["relu"]()(x).sum(), x)
    assert slopes.tolist() == [0, 1]


def test_sparta_like_masks_by_the_surroundings() -> None:
    torch.manual_seed(0)
    layer, x = SpartaLike(), torch.randn(2, 3, 5, 5)
    with torch.no_grad():
        layer.kernel.copy_(torch.randn(1, 1, 3, 3))
        layer.gain.fill_(0.7)
        layer.slope.fill_(0.2)
    seen = torch.stack([F.conv2d(x[:, c : c + 1], layer.kernel, padding=1)[:, 0] for c in range(3)], 1)
    mask = (0.7 * seen + 2).sigmoid()
    torch.testing.assert_close(layer(x), torch.where(x > 0, mask * x, (1 - mask) * 0.2 * x))
    assert layer(x[:, :, 0, 0]).shape == (2, 3)


def test_pssilu_is_learned_once_for_the_whole_network() -> None:
    network = build_weightless("wide_resnet", activation="pssilu")
    assert count_parameters(network) == 36_479_196
    keys = set(network.state_dict())
    assert {"activation.alpha", "activation.beta", "block3.layer.3.activation.beta"} <= keys
    assert not any("activation2" in key for key in keys)


@pytest.mark.parametrize(
    ("name", "settings", "places"),
    [
        ("wide_resnet", {"depth": 28}, 2 * 12 + 1),
        ("wide_resnet", {"depth": 28, "form": "deepmind"}, 2 * 12 + 1),
        ("resnet18", {}, 1 + 2 * 8),
        ("resnet50", {}, 1 + 3 * 16),
        ("preact_resnet18", {"form": "a"}, 2 * 8),
        ("preact_resnet18", {"form": "dm"}, 2 * 8 + 1),
        ("preact_resnet50", {}, 3 * 16 + 1),
        ("robust_resnet", {"depths": (1, 1, 1)}, 9 * 3 + 1),
        # A stem, two branches and their attention, and the end of each block.
        ("sknet", {}, 1 + 4 * 8),
        ("sknet", {"depth": 50}, 1 + 5 * 16),
    ],
)
def test_other_activations_are_learned_at_every_place(name: str, settings: dict[str, Any], places: int) -> None:
    plain, learned = (
        count_parameters(build_weightless(name, **settings, activation=each)) for each in ("relu", "smooth_relu")
    )
    assert learned == plain + places


def test_a_copy_of_a_network_has_its_own_shared_activation() -> None:
    network = build("wide_resnet", depth=10, widen=1, activation="pssilu").eval()
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    other = copy.deepcopy(network)
    with torch.no_grad():
        before = other(x)
        network.get_parameter("activation.alpha").fill_(3.0)
        assert torch.equal(other(x), before)
        other.load_state_dict(network.state_dict())
        assert torch.equal(other(x), network(x))
        assert not torch.allclose(network(x), before)


# Down-sampling


def dense(layer: nn.Module, side: int) -> Tensor:
    """The matrix of a linear map of one channel of side x side pixels."""
    pixels = torch.eye(side * side, dtype=torch.float64).view(-1, 1, side, side)
    return layer(pixels).flatten(1).T


def by_transform(x: Tensor, windowed: bool = False) -> Tensor:
    """The low half of the centered spectrum, as published for sides that 4 divides."""
    side = x.shape[-1]
    if windowed:
        x = F.pad(x, (0, 1, 0, 1))
    spectrum = torch.fft.fftshift(torch.fft.fft2(x, norm="forward"), dim=(-2, -1))
    total = x.shape[-1]
    if windowed:
        window = torch.hamming_window(total, periodic=False, dtype=torch.float64)
        spectrum = spectrum * torch.outer(window, window).sqrt()
    kept = slice(total // 4, 3 * total // 4)
    spectrum = spectrum[..., kept, kept]
    assert spectrum.shape[-1] == side // 2
    return torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1)), norm="forward").real


@pytest.mark.parametrize("side", [4, 8, 16, 28, 32])
@pytest.mark.parametrize("windowed", [False, True])
def test_spectral_pooling_is_the_crop_of_a_transform(side: int, windowed: bool) -> None:
    x = torch.rand(2, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pooled = SpectralPool(windowed=windowed)(x)
    torch.testing.assert_close(pooled, by_transform(x, windowed), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("side", "expected"), [(32, 16), (28, 14), (14, 7), (7, 4), (15, 8), (13, 7), (2, 1), (1, 1)])
def test_spectral_pooling_halves_as_a_strided_convolution_does(side: int, expected: int) -> None:
    x = torch.rand(1, 2, side, side + 1, generator=torch.Generator().manual_seed(0))
    for windowed in (False, True):
        assert SpectralPool(windowed=windowed)(x).shape == (1, 2, expected, (side + 2) // 2)
    pooled = SpectralPool(windowed=False)(x)
    torch.testing.assert_close(pooled.mean((2, 3)), x.mean((2, 3)))
    torch.testing.assert_close(SpectralPool(windowed=False)(torch.ones_like(x)), torch.ones_like(pooled))


@pytest.mark.slow
def test_the_matrices_of_spectral_pooling_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    plain = downsampling.low_pass

    def counted(side: int, *rest: Any) -> tuple[Tensor, Tensor]:
        made.append(side)
        return plain(side, *rest)

    monkeypatch.setattr(downsampling, "low_pass", counted)
    monkeypatch.setattr(downsampling, "_KEPT", {})
    layer, x = SpectralPool(windowed=False), torch.rand(1, 2, 8, 6, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        first = layer(x)
    # A copy, in training, and compiled; they are not in checkpoints.
    pixels = x.clone().requires_grad_()
    again = copy.deepcopy(layer)(pixels)
    again.sum().backward()
    assert torch.equal(again, first)
    assert pixels.grad is not None
    assert made == [8, 6]
    assert layer.state_dict() == {}
    torch.testing.assert_close(torch.compile(layer, backend="eager")(x), first)
    # Cached by precision and size, with a bound.
    layer(x.double())
    assert made[-2:] == [8, 6]
    for side in range(9, 160):
        layer(torch.rand(1, 1, side, side))
    assert len(downsampling._KEPT) <= 64


@pytest.mark.parametrize(("frequency", "gain"), [(0, 1), (3, 1), (7, 1), (8, 0.5), (9, 0), (15, 0)])
def test_low_frequencies_pass_and_high_ones_vanish(frequency: int, gain: float) -> None:
    fine = torch.cos(2 * math.pi * frequency * torch.arange(32) / 32).expand(1, 1, 32, 32)
    coarse = torch.cos(2 * math.pi * frequency * torch.arange(16) / 16).expand(1, 1, 16, 16)
    torch.testing.assert_close(SpectralPool(windowed=False)(fine), gain * coarse, atol=1e-5, rtol=0)


def test_norms_of_flc_pooling() -> None:
    matrix = dense(SpectralPool(windowed=False), 16)
    assert torch.linalg.matrix_norm(matrix, 2).item() == pytest.approx(0.5, abs=1e-5)
    assert round(matrix.abs().sum(1).max().item(), 2) == 2.10
    assert round(matrix.abs().sum(0).max().item(), 2) == 0.93


def test_asap_rings_less_around_a_square() -> None:
    """The appended line of zeros is an edge, unless the image ends dark."""
    square = F.pad(torch.ones(1, 1, 16, 16), (8, 8, 8, 8))
    plain, windowed = (SpectralPool(windowed=windowed)(square) for windowed in (False, True))
    assert plain.max() > 1.14 > 1.08 > windowed.max()
    assert plain.min() < -0.07 < -0.006 < windowed.min()


@pytest.mark.parametrize("name", ["average", "flc", "asap"])
def test_downsampling_pools_and_then_convolves(name: Any) -> None:
    torch.manual_seed(0)
    layer, x = Layers(downsample=name).convolution(2, 5, 3, 2), torch.rand(2, 2, 9, 8)
    assert isinstance(layer, Pooled)
    assert isinstance(layer.layer, nn.Conv2d)
    pooled = layer.pool(x)
    assert pooled.shape == (2, 2, 5, 4)
    torch.testing.assert_close(layer(x), F.conv2d(pooled, layer.layer.weight, padding=1))
    if name == "average":
        # The last row of an odd side is its own mean.
        torch.testing.assert_close(pooled[:, :, 4, 0], x[:, :, 8, :2].mean(2))
    assert isinstance(Layers(downsample=name).convolution(2, 5, 3, 1), nn.Conv2d)


@pytest.mark.parametrize("name", ["average", "flc", "asap"])
@pytest.mark.parametrize("network", ["resnet18", "preact_resnet18", "wide_resnet"])
def test_pooled_networks_cost_what_strided_ones_do(network: str, name: str) -> None:
    plain, pooled = build_weightless(network), build_weightless(network, downsample=name)
    assert count_parameters(pooled) == count_parameters(plain)
    assert count_macs(pooled, CIFAR) == count_macs(plain, CIFAR)


def test_flc_preact_resnet18_has_its_published_size() -> None:
    network = build_weightless("preact_resnet18", form="c", downsample="flc")
    assert count_parameters(network) == 11_172_170
    assert round(count_macs(network, CIFAR) / 1e9, 4) == 0.5554


def test_a_spectrum_is_only_cut_to_a_half() -> None:
    with pytest.raises(RobustCliError, match=r"downsample: flc halves each side.*a stride is 4"):
        build("resnet18", downsample="flc", strides=(1, 4, 2, 2))


# Norms


def test_conv_norm_resnet18_has_its_published_size() -> None:
    assert count_parameters(build_weightless("resnet18", norm="conv")) == 11_214_794


@pytest.mark.parametrize(("kernel", "stride", "groups"), [(3, 1, 1), (3, 2, 1), (5, 1, 1), (3, 1, 2), (1, 2, 1)])
def test_conv_norm_is_a_convolution_with_a_flat_spectrum(kernel: int, stride: int, groups: int) -> None:
    torch.manual_seed(0)
    side, inputs, outputs = 8, 4, 6
    layer, x = PreconditionedConv2d(inputs, outputs, kernel, stride, groups), torch.randn(2, inputs, side, side)
    whole = side + kernel - 1
    weight = layer.convolution.weight
    # A circular correlation multiplies the image's spectrum by the conjugate of the kernel's.
    kernels = torch.fft.fft2(weight, (whole, whole)).conj()
    gains = kernels.abs().square().sum(1).rsqrt()
    flat = kernels * gains[:, None]
    torch.testing.assert_close(flat.abs().square().sum(1), torch.ones(outputs, whole, whole))
    image = torch.fft.fft2(F.pad(x, (0, kernel - 1, 0, kernel - 1)))
    parts = image.view(2, groups, inputs // groups, whole, whole)
    found = torch.einsum("nguij,gouij->ngoij", parts, flat.view(groups, -1, *flat.shape[1:]))
    y = torch.fft.ifft2(found.reshape(2, outputs, whole, whole)).real
    # Output t of the padded convolution reads the pixels from t - padding on.
    padding = kernel // 2
    y = y.roll((padding, padding), (2, 3))[:, :, :side:stride, :side:stride]
    torch.testing.assert_close(layer(x), layer.affine(y), atol=1e-4, rtol=1e-3)


def test_conv_norm_lengthens_no_output_channel() -> None:
    """So the norm of the layer is at most the root of their number."""
    torch.manual_seed(0)
    inputs, outputs, side = 2, 3, 6
    layer = PreconditionedConv2d(inputs, outputs, 3, 1, 1)
    with torch.no_grad():
        layer.affine.weight.zero_()
        layer.affine.weight[:, :, 1, 1] = 1
        layer.affine.bias.zero_()
        pixels = torch.eye(inputs * side * side).view(-1, inputs, side, side)
        matrices = layer(pixels).flatten(2).permute(1, 2, 0)
    norms = torch.linalg.matrix_norm(matrices, 2)
    assert float(norms.max()) <= 1 + 1e-5
    assert float(norms.min()) > 0.9
    assert 1 < float(torch.linalg.matrix_norm(matrices.flatten(0, 1), 2)) <= outputs**0.5 + 1e-5


def test_no_gradient_flows_through_the_divisor() -> None:
    torch.manual_seed(0)
    layer, x = PreconditionedConv2d(2, 3, 3, 1, 1), torch.randn(1, 2, 6, 6)
    assert not layer.divisor(8, 8).requires_grad
    layer(x).sum().backward()
    # With it, the gradient would be orthogonal to the weights.
    weight = layer.convolution.weight
    assert weight.grad is not None
    assert (weight.grad * weight).sum().abs() > 1e-3


def test_conv_norm_ignores_the_size_of_the_kernels_and_takes_any_size_of_images() -> None:
    torch.manual_seed(0)
    layer, x = PreconditionedConv2d(2, 3, 3, 2, 1), torch.randn(1, 2, 7, 5)
    before = layer(x)
    assert before.shape == (1, 3, 4, 3)
    with torch.no_grad():
        layer.convolution.weight.mul_(torch.tensor([1.0, 10, 0.1]).view(3, 1, 1, 1))
    torch.testing.assert_close(layer(x), before, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        layer.convolution.weight.zero_()
    assert torch.isfinite(layer(x)).all()


def test_conv_norm_is_refused_where_padding_is_not_symmetric() -> None:
    for name, form in (("wide_resnet", "deepmind"), ("preact_resnet18", "dm")):
        for norm in ("conv", "conv_running"):
            with pytest.raises(RobustCliError, match=f"norm: {norm} pads convolutions symmetrically"):
                build_weightless(name, norm=norm, form=form)


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (512, 32), (160, 16), (16, 8), (4, 2), (2, 1), (3, 1)])
def test_groups_divide_the_channels_and_hold_two(channels: int, groups: int) -> None:
    norm = Layers(norm="group").normalization(channels)
    assert isinstance(norm, nn.GroupNorm)
    assert norm.num_groups == groups


def test_group_norm_leaves_no_batch_norm() -> None:
    for name in ("resnet18", "preact_resnet18", "wide_resnet"):
        network = build_weightless(name, norm="group", channel_gate="residual_se")
        assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
        plain = build_weightless(name, channel_gate="residual_se")
        assert count_parameters(network) == count_parameters(plain)


# Gates


def test_gates_are_their_formulas() -> None:
    torch.manual_seed(0)
    v = torch.randn(2, 32, 3, 5)
    gate = SqueezeExcitation(32, 2)
    assert {name: tuple(weight.shape) for name, weight in gate.named_parameters()} == {
        "fc1.weight": (2, 32, 1, 1),
        "fc1.bias": (2,),
        "fc2.weight": (32, 2, 1, 1),
        "fc2.bias": (32,),
    }
    hidden = F.linear(v.mean((2, 3)), gate.fc1.weight.flatten(1), gate.fc1.bias).relu()
    weighed = F.linear(hidden, gate.fc2.weight.flatten(1), gate.fc2.bias).sigmoid()
    torch.testing.assert_close(gate(v), v * weighed[:, :, None, None])
    residual = ResidualSqueezeExcitation(32, 2, nn.BatchNorm2d(32)).eval()
    residual.norm.running_mean = torch.randn(32)
    residual.norm.weight.data.uniform_()
    torch.testing.assert_close(residual(v), v + residual.se(residual.norm(v)))
    assert not [name for name, _ in residual.se.named_parameters() if name.endswith("bias")]


def test_squeeze_and_excitation_adds_its_weights() -> None:
    """Per block of c channels c^2 / 8 weights and c / 16 + c biases; SENet-18 has only a norm in its stem besides."""
    network = build_weightless("preact_resnet18", form="a", channel_gate="se")
    added = 2 * sum(c * c // 8 + c // 16 + c for c in (64, 128, 256, 512))
    assert count_parameters(network) == 11_171_146 + added == 11_260_354 - 2 * 64


@pytest.mark.parametrize(
    ("name", "settings", "gated"),
    [
        ("resnet18", {}, [64, 64, 128, 128, 256, 256, 512, 512]),
        ("preact_resnet18", {"form": "dm"}, [64, 64, 128, 128, 256, 256, 512, 512]),
        ("wide_resnet", {"depth": 16, "widen": 2}, [32, 32, 64, 64, 128, 128]),
        ("wide_resnet", {"depth": 10, "widen": 2, "form": "deepmind"}, [32, 64, 128]),
        ("robust_wide_resnet", {"depths": (1, 2, 1), "widths": (1, 1, 1)}, [16, 32, 32, 64]),
        ("vgg11", {}, [64, 128, 256, 256, 512, 512, 512, 512]),
        ("alexnet", {}, [64, 192, 384, 256, 256]),
    ],
)
def test_a_gate_of_cifs_is_a_linear_probe_in_every_place(name: str, settings: dict[str, Any], gated: list[int]) -> None:
    shape = ImageShape(3, 32, 32, 7)
    network = build_weightless(name, shape, channel_gate="cifs", **settings)
    gates = gates_of(network)
    assert [gate.probe.last.in_features for gate in gates] == gated
    assert {(gate.probe.first, gate.mask, gate.detaches) for gate in gates} == {(None, "scaled", True)}
    # Weights of 7 classes, and a bias for each.
    added = sum(7 * channels + 7 for channels in gated)
    assert count_parameters(network) == count_parameters(build_weightless(name, shape, **settings)) + added


def test_a_gate_of_cifs_keeps_the_scale_of_its_branch_and_sees_one_image_at_a_time() -> None:
    torch.manual_seed(0)
    network = build("resnet18", width=4, channel_gate="cifs").eval()
    z = torch.ones(3, 8, 2, 2)
    masked = Layers(channel_gate="cifs", classes=5).gate(8)(z)
    torch.testing.assert_close(masked.mean(1), torch.ones(3, 2, 2))
    assert not torch.allclose(masked, z, atol=1e-2)
    x = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        alone = torch.cat([network(image[None]) for image in x])
        torch.testing.assert_close(network(x), alone, atol=1e-5, rtol=1e-4)


def test_fan_out_leaves_the_probes_of_gates_as_they_are() -> None:
    network = build("wide_resnet", depth=10, widen=1, channel_gate="cifs")
    assert all(gate.probe.last.bias.abs().min() > 0 for gate in gates_of(network))
    assert not network.get_parameter("fc.bias").any()


CHOICES = [
    {"norm": "group"},
    {"norm": "conv"},
    {"norm": "conv_running"},
    {"norm": "conv", "downsample": "flc"},
    {"downsample": "asap"},
    {"channel_gate": "residual_se"},
    {"channel_gate": "cifs"},
    {"activation": "sparta_like"},
]


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize(
    ("name", "settings"),
    [("resnet18", {"width": 4}), ("preact_resnet50", {"width": 4}), ("wide_resnet", {"depth": 10, "widen": 1})],
)
def test_choices_train_in_low_precision_and_load_again(
    name: str, settings: dict[str, Any], choice: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    shape = ImageShape(1, 17, 12, 3)
    network, again = (build(name, shape, **settings, **choice) for _ in range(2))
    x = torch.rand(4, 1, 17, 12, generator=torch.Generator().manual_seed(2)).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network.to(memory_format=torch.channels_last)(x)
    F.cross_entropy(logits.float(), torch.tensor([0, 1, 2, 0])).backward()
    assert x.grad is not None
    assert x.grad.flatten(1).abs().amax(1).gt(0).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters() if parameter.grad is not None)
    again.load_state_dict(network.state_dict(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(x), network.eval()(x), atol=1e-4, rtol=1e-3)


def test_an_enlarged_network_has_the_same_weights_and_sees_larger_images() -> None:
    torch.manual_seed(0)
    plain, enlarged = build("resnet18", width=4).eval(), build("resnet18", width=4, upsample=2).eval()
    enlarged.load_state_dict(plain.state_dict(), strict=True)
    x = torch.rand(2, 3, 9, 9)
    with torch.no_grad():
        torch.testing.assert_close(enlarged(x), plain(x.repeat_interleave(2, 2).repeat_interleave(2, 3)))


@pytest.mark.parametrize(
    ("name", "settings", "block", "gate"),
    [
        ("resnet18", {"width": 8}, "layer1.1", "gate"),
        ("resnet50", {"width": 8}, "layer1.1", "gate"),
        ("preact_resnet18", {"width": 8}, "layer1.1", "gate"),
        ("preact_resnet50", {"width": 8}, "layer1.1", "gate"),
        ("preact_resnet18", {"width": 8, "form": "dm"}, "layer_0.1", "gate"),
        ("wide_resnet", {"depth": 16, "widen": 1}, "block1.layer.1", "gate"),
        ("wide_resnet", {"depth": 16, "widen": 1, "form": "deepmind"}, "layer.0.block.1", "se"),
    ],
)
def test_a_gate_is_the_end_of_the_residual_branch(name: str, settings: dict[str, Any], block: str, gate: str) -> None:
    torch.manual_seed(0)
    found = build(name, channel_gate="se", **settings).eval().get_submodule(block)
    closed = found.get_submodule(gate)
    assert isinstance(closed, SqueezeExcitation)
    x = torch.rand(2, 32 if name.endswith("50") else 16 if name == "wide_resnet" else 8, 6, 6)
    assert not torch.allclose(found(x), x)
    with torch.no_grad():
        closed.fc2.weight.zero_()
        closed.fc2.bias.fill_(-100)
    torch.testing.assert_close(found(x), x)
