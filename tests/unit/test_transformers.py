"""Transformers and ConvNeXt: published sizes, equations written a second time, torchvision's networks, and masks."""

import math
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import CIFAR, IMAGENET, build, build_weightless, count_macs, count_parameters, stirred
from torch import Tensor, nn
from torchvision.models import ConvNeXt, VisionTransformer
from torchvision.models.convnext import CNBlockConfig

from robustcli.architectures import ImageShape
from robustcli.architectures.transformer_parts import StochasticDepth, late_strides, rising_rates
from robustcli.attacks.matched_masks import masks_matched
from robustcli.contracts.networks import drawn_from
from robustcli.errors import RobustCliError

Settings = dict[str, Any]


def images(height: int = 32, width: int = 32, count: int = 2) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def convnext_size(width: int, depths: tuple[int, ...], patch: int) -> Settings:
    return {"depths": depths, "widths": tuple(width * 2**stage for stage in range(4)), "patch": patch}


ATTO, NANO, TINY, SMALL = (2, 2, 6, 2), (2, 2, 8, 2), (3, 3, 9, 3), (3, 3, 27, 3)
S16, M16, L16 = {"patch": 16}, {"patch": 16, "width": 512}, {"patch": 16, "width": 768, "heads": 16}

# Name, settings, shape, parameters, 10^9 multiplications.
EXACT = [
    ("xcit", {}, CIFAR, 25_872_154, 1.5643),
    ("xcit", {"width": 512}, CIFAR, 45_893_290, 2.7772),
    ("xcit", {"width": 768, "heads": 16}, CIFAR, 103_031_338, 6.1838),
    ("xcit", S16, IMAGENET, 26_253_304, 4.7958),
    ("xcit", M16, IMAGENET, 46_401_160, 8.5090),
    ("xcit", L16, IMAGENET, 103_792_648, 18.9339),
    ("vit", {"patch": 16}, IMAGENET, 22_050_664, 4.5989),
    ("vit", {"patch": 16, "width": 768, "heads": 12}, IMAGENET, 86_567_656, 17.5638),
    ("convnext", convnext_size(40, ATTO, 1), CIFAR, 3_375_930, 0.1768),
    ("convnext", convnext_size(48, ATTO, 1), CIFAR, 4_834_474, 0.2522),
    ("convnext", convnext_size(64, ATTO, 1), CIFAR, 8_534_922, 0.4433),
    ("convnext", convnext_size(80, NANO, 1), CIFAR, 14_955_370, 0.7947),
    ("convnext", {}, CIFAR, 27_823_498, 1.4502),
]
# The same with millions of parameters.
ROUNDED = [
    ("xcit", {**S16, "width": 128, "heads": 4}, IMAGENET, 3, None),
    ("xcit", {**S16, "width": 192, "heads": 4}, IMAGENET, 7, None),
    ("xcit", {**S16, "width": 192, "heads": 4, "depth": 24}, IMAGENET, 12, None),
    ("xcit", {**S16, "depth": 24}, IMAGENET, 48, None),
    ("xcit", {**M16, "depth": 24}, IMAGENET, 84, None),
    ("xcit", {**L16, "depth": 24}, IMAGENET, 189, None),
    ("convnext", convnext_size(40, ATTO, 4), CIFAR, 3.378, 0.0112),
    ("convnext", convnext_size(48, ATTO, 4), CIFAR, 4.837, 0.0159),
    ("convnext", convnext_size(64, ATTO, 4), CIFAR, 8.538, 0.0279),
    ("convnext", convnext_size(80, NANO, 4), CIFAR, 14.959, 0.0499),
    ("convnext", convnext_size(96, TINY, 4), CIFAR, 27.828, 0.0909),
    ("convnext", convnext_size(96, TINY, 4), IMAGENET, 28.589, 4.4555),
    ("convnext", convnext_size(96, SMALL, 4), IMAGENET, 50.224, 8.6837),
    ("convnext", convnext_size(128, SMALL, 4), IMAGENET, 88.591, 15.3547),
]


@pytest.mark.parametrize(("name", "settings", "shape", "parameters", "cost"), EXACT)
@pytest.mark.slow
def test_size_is_the_published_one(
    name: str, settings: Settings, shape: ImageShape, parameters: int, cost: float
) -> None:
    network = build_weightless(name, shape, **settings)
    assert count_parameters(network) == parameters
    assert round(count_macs(network, shape) / 1e9, 4) == cost


@pytest.mark.parametrize(("name", "settings", "shape", "millions", "cost"), ROUNDED)
@pytest.mark.slow
def test_size_is_the_rounded_published_one(
    name: str, settings: Settings, shape: ImageShape, millions: float, cost: float | None
) -> None:
    network = build_weightless(name, shape, **settings)
    assert round(count_parameters(network) / 1e6, 3 if isinstance(millions, float) else 0) == millions
    assert cost is None or round(count_macs(network, shape) / 1e9, 4) == cost


# XCiT.

XCIT = {"width": 16, "heads": 4, "depth": 2}
XCIT_KEYS = """
cls_token patch_embed.proj.{0,2,4,6}.0.weight patch_embed.proj.{0,2,4,6}.1.{W,running_mean,running_var}
pos_embed.token_projection.W blocks.{0,1}.{gamma1,gamma2,gamma3,attn.temperature} blocks.{0,1}.{norm1,norm2,norm3}.W
blocks.{0,1}.attn.{qkv,proj}.W blocks.{0,1}.local_mp.{conv1,conv2}.W
blocks.{0,1}.local_mp.bn.{W,running_mean,running_var} blocks.{0,1}.mlp.{fc1,fc2}.W
cls_attn_blocks.{0,1}.{gamma1,gamma2} cls_attn_blocks.{0,1}.{norm1,norm2}.W
cls_attn_blocks.{0,1}.attn.{q,k,v,proj}.W cls_attn_blocks.{0,1}.mlp.{fc1,fc2}.W norm.W head.W
"""


def spelled(pattern: str) -> list[str]:
    """Expand a pattern; W is weight and bias."""
    found = re.search(r"\{([^{}]*)\}|\bW\b", pattern)
    if found is None:
        return [pattern]
    parts = found[1].split(",") if found[1] else ["weight", "bias"]
    return [word for part in parts for word in spelled(pattern[: found.start()] + part + pattern[found.end() :])]


def test_xcit_keys_are_those_of_public_checkpoints() -> None:
    keys = {key for key in build_weightless("xcit", **XCIT).state_dict() if not key.endswith("num_batches_tracked")}
    assert keys == {word for pattern in XCIT_KEYS.split() for word in spelled(pattern)}


def layer_norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    spread, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    return (x - mean) / (spread + 1e-6).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def batch_norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    mean, spread, weight, bias = (state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
    scale = (weight / (spread + 1e-5).sqrt())[:, None, None]
    return (x - mean[:, None, None]) * scale + bias[:, None, None]


def linear(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def perceptron(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return linear(state, f"{name}.fc2", F.gelu(linear(state, f"{name}.fc1", x)))


def fourier(height: int, width: int) -> Tensor:
    """(64, height, width): for each axis 16 pairs of a sine and a cosine, written number by number."""
    features = torch.empty(64, height, width, dtype=torch.float64)
    for row in range(height):
        for column in range(width):
            for axis, (place, length) in enumerate(((row + 1, height), (column + 1, width))):
                for wave in range(16):
                    angle = 2 * math.pi * place / length / 10_000 ** (2 * wave / 32)
                    features[32 * axis + 2 * wave, row, column] = math.sin(angle)
                    features[32 * axis + 2 * wave + 1, row, column] = math.cos(angle)
    return features


def xcit_reference(state: dict[str, Tensor], x: Tensor, strides: tuple[int, ...], norm_tokens: bool) -> Tensor:
    for i, stride in enumerate(strides):
        name = f"patch_embed.proj.{2 * i}"
        x = batch_norm(state, f"{name}.1", F.conv2d(x, state[f"{name}.0.weight"], stride=stride, padding=1))
        x = F.gelu(x) if i < 3 else x
    n, width, rows, columns = x.shape
    kernel = state["pos_embed.token_projection.weight"][:, :, 0, 0]
    position = torch.einsum("cf,fhw->chw", kernel, fourier(rows, columns))
    x = x + position + state["pos_embed.token_projection.bias"][:, None, None]
    x = x.flatten(2).transpose(1, 2)
    for i in range(2):
        name = f"blocks.{i}"
        qkv = linear(state, f"{name}.attn.qkv", layer_norm(state, f"{name}.norm1", x))
        heads = []
        for head in range(4):
            q, k, v = (qkv[..., part * width :][..., head * width // 4 : (head + 1) * width // 4] for part in range(3))
            q, k = q / q.norm(dim=1, keepdim=True), k / k.norm(dim=1, keepdim=True)
            cosine = torch.einsum("ntc,ntd->ncd", q, k) * state[f"{name}.attn.temperature"][head]
            heads.append(torch.einsum("ncd,ntd->ntc", cosine.softmax(-1), v))
        x = x + state[f"{name}.gamma1"] * linear(state, f"{name}.attn.proj", torch.cat(heads, -1))
        grid = layer_norm(state, f"{name}.norm3", x).transpose(1, 2).reshape(n, width, rows, columns)
        local = f"{name}.local_mp"
        first, second = (
            (state[f"{local}.{conv}.weight"], state[f"{local}.{conv}.bias"]) for conv in ("conv1", "conv2")
        )
        grid = batch_norm(state, f"{local}.bn", F.gelu(F.conv2d(grid, *first, padding=1, groups=width)))
        grid = F.conv2d(grid, *second, padding=1, groups=width)
        x = x + state[f"{name}.gamma3"] * grid.flatten(2).transpose(1, 2)
        x = x + state[f"{name}.gamma2"] * perceptron(state, f"{name}.mlp", layer_norm(state, f"{name}.norm2", x))
    x = torch.cat([state["cls_token"].expand(n, 1, width), x], 1)
    for i in range(2):
        name = f"cls_attn_blocks.{i}"
        u = layer_norm(state, f"{name}.norm1", x)
        q, k, v = (linear(state, f"{name}.attn.{part}", u) for part in "qkv")
        heads = []
        for head in range(4):
            part = slice(head * width // 4, (head + 1) * width // 4)
            score = torch.einsum("nc,ntc->nt", q[:, 0, part], k[..., part]) / (width / 4) ** 0.5
            heads.append(torch.einsum("nt,ntc->nc", score.softmax(-1), v[..., part]))
        seen = linear(state, f"{name}.attn.proj", torch.cat(heads, -1))
        x = x + state[f"{name}.gamma1"] * torch.cat([seen[:, None], u[:, 1:]], 1)
        normed = layer_norm(state, f"{name}.norm2", x)
        x = normed if norm_tokens else torch.cat([normed[:, :1], x[:, 1:]], 1)
        said = state[f"{name}.gamma2"] * perceptron(state, f"{name}.mlp", x[:, :1])
        x = torch.cat([x[:, :1] + said, 2 * x[:, 1:]], 1)
    return linear(state, "head", layer_norm(state, "norm", x[:, 0]))


@pytest.mark.parametrize("norm_tokens", [True, False])
@pytest.mark.parametrize(("patch", "strides"), [(4, (1, 1, 2, 2)), (8, (1, 2, 2, 2)), (16, (2, 2, 2, 2))])
def test_xcit_is_its_equations(patch: int, strides: tuple[int, ...], norm_tokens: bool) -> None:
    network = stirred(build("xcit", **XCIT, patch=patch, norm_tokens=norm_tokens)).double()
    x = images(48, 32).double()
    expected = xcit_reference(network.state_dict(), x, strides, norm_tokens)
    # Positions are computed in single precision.
    torch.testing.assert_close(network(x), expected, atol=1e-5, rtol=1e-5)


def test_xcit_weights_fit_every_patch() -> None:
    large, small = build("xcit", IMAGENET, **XCIT, patch=16), build_weightless("xcit", IMAGENET, **XCIT, patch=4)
    assert {k: v.shape for k, v in large.state_dict().items()} == {k: v.shape for k, v in small.state_dict().items()}
    convolutions = [module for module in small.patch_embed.modules() if isinstance(module, nn.Conv2d)]  # type: ignore[union-attr]
    assert [convolution.stride[0] for convolution in convolutions] == [1, 1, 2, 2]


# ViT.

VIT = {"width": 16, "heads": 4, "depth": 3}


def test_vit_is_torchvisions() -> None:
    other = stirred(VisionTransformer(32, 4, 3, 4, 16, 64, num_classes=10))
    names = [
        ("class_token", "cls_token"),
        ("encoder.pos_embedding", "pos_embed"),
        ("conv_proj", "patch_embed.proj"),
        ("heads.head", "head"),
        ("encoder.ln", "norm"),
        (r"encoder.layers.encoder_layer_(\d+)", r"blocks.\1"),
        ("ln_(1|2)", r"norm\1"),
        ("self_attention.in_proj_", "attn.qkv."),
        ("self_attention.out_proj", "attn.proj"),
        (r"mlp\.0", "mlp.fc1"),
        (r"mlp\.3", "mlp.fc2"),
    ]
    renamed = {}
    for key, value in other.state_dict().items():
        for old, new in names:
            key = re.sub(old, new, key)
        renamed[key] = value
    network = build("vit", **VIT).eval()
    network.load_state_dict(renamed, strict=True)
    x = images()
    with torch.no_grad():
        torch.testing.assert_close(network(x), other(x))


def test_vit_has_dropout_at_the_stated_places() -> None:
    """Three draws of dropout in a block and one before it; each is a share of what passes there."""
    network = build("vit", **VIT, dropout=0.25).train()
    seen: list[float] = []
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda _m, _i, output: seen.append((output == 0).float().mean().item()))
    with drawn_from(4), torch.no_grad():
        network(images(count=16))
    assert len(seen) == 1 + 3 * 3
    assert all(share == pytest.approx(0.25, abs=0.03) for share in seen)


def test_weights_are_drawn_with_the_published_spread() -> None:
    with drawn_from(0):
        vit, convnext = build("vit", width=128, heads=2, depth=1), build("convnext", depths=(1, 1, 1, 1))
    for weight in (vit.blocks[0].mlp.fc1.weight, vit.pos_embed, convnext.head.fc.weight):  # type: ignore[index,union-attr]
        assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.05)  # type: ignore[operator]


def test_vit_can_start_with_low_class_probabilities() -> None:
    with drawn_from(0):
        usual, rare = build("vit", **VIT), build("vit", **VIT, head_bias=-6.9)
    assert torch.equal(usual.head.bias, torch.zeros(10))  # type: ignore[union-attr,arg-type]
    assert torch.equal(rare.head.bias, torch.full((10,), -6.9))  # type: ignore[union-attr,arg-type]


def test_vit_refuses_patches_that_do_not_fit() -> None:
    with pytest.raises(RobustCliError, match=r"patch: 5 does not divide images of 32x32 pixels; write 32 or a divisor"):
        build("vit", patch=5)
    with pytest.raises(RobustCliError, match=r"patch: 32; the stem 'conv' supports 1, 2, 4, 8 and 16"):
        build("vit", patch=32, stem="conv")
    for name in ("vit", "xcit"):
        with pytest.raises(RobustCliError, match=r"width: 20 channels cannot be shared by 8 heads; .* such as 16"):
            build(name, width=20, heads=8)


# Masks.


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("vit", {**VIT, "dropout": 0.2}),
        ("vit", {**VIT, "drop_path": 0.5}),
        ("xcit", {**XCIT, "drop_path": 0.5}),
        ("convnext", {"depths": (1, 1), "widths": (4, 8), "drop_path": 0.5, "layer_scale": 1.0}),
    ],
)
def test_masks_can_be_matched(name: str, settings: Settings) -> None:
    with drawn_from(0):
        network = build(name, **settings).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    x = images(count=8)
    with drawn_from(3), torch.no_grad():
        with masks_matched(network, torch.device("cpu")):
            first, second = network(x), network(x)
        free = [network(x) for _ in range(2)]
    assert torch.equal(first, second)
    assert torch.equal(first, free[0])
    assert not torch.equal(free[0], free[1])
    assert not torch.equal(first, network.eval()(x))


def test_stochastic_depth_drops_whole_images_and_keeps_the_mean() -> None:
    part, branch = StochasticDepth(0.25), torch.ones(4000, 3, 2)
    with drawn_from(0):
        dropped = part.train()(branch)
    assert torch.equal(dropped, dropped[:, :1, :1].expand_as(dropped))
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert dropped.mean().item() == pytest.approx(1, abs=0.03)
    assert part.eval()(branch) is branch


def test_rates_of_stochastic_depth() -> None:
    assert rising_rates(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert rising_rates(0.3, 1) == [0]
    rates: dict[str, list[float]] = {}
    for name, settings in (("vit", VIT), ("xcit", XCIT), ("convnext", {"depths": (1, 2), "widths": (4, 8)})):
        network = build_weightless(name, **settings, drop_path=0.4)
        rates[name] = [module.rate for module in network.modules() if isinstance(module, StochasticDepth)]
    assert rates == {"vit": [0, 0.2, 0.4], "xcit": [0.4, 0.4], "convnext": [0, 0.2, 0.4]}


# ConvNeXt and stems.


def test_convnext_is_torchvisions() -> None:
    stages = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, 24, 2), CNBlockConfig(24, None, 1)]
    other = stirred(ConvNeXt(stages, num_classes=10))
    names = {
        "block.0": "conv_dw",
        "block.2": "norm",
        "block.3": "mlp.fc1",
        "block.5": "mlp.fc2",
        "layer_scale": "gamma",
    }
    renamed = {}
    for key, value in other.state_dict().items():
        if key.startswith("classifier"):
            new = key.replace("classifier.0", "head.norm").replace("classifier.2", "head.fc")
        else:
            place, rest = re.fullmatch(r"features\.(\d+)\.(.*)", key).groups()  # type: ignore[union-attr]
            stage, is_between = divmod(int(place) - 1, 2)
            prefix = f"stages.{stage + 1}.downsample" if is_between else f"stages.{stage}.blocks"
            new = f"{prefix if int(place) else 'stem'}.{rest}"
            for old, ours in names.items():
                new = new.replace(old, ours)
        renamed[new] = value.flatten() if new.endswith("gamma") else value
    network = build("convnext", depths=(1, 2, 1), widths=(8, 16, 24), patch=4).eval()
    network.load_state_dict(renamed, strict=True)
    x = images(35, 48)
    with torch.no_grad():
        torch.testing.assert_close(network(x), other(x))


def test_convnext_leaves_4_of_32_pixels() -> None:
    sides = {}
    for patch in (1, 2, 4):
        seen: list[torch.Size] = []
        network = build_weightless("convnext", patch=patch)
        network.stages.register_forward_hook(lambda _m, _i, output, seen=seen: seen.append(output.shape))  # type: ignore[union-attr]
        network(torch.empty(1, 3, 32, 32, device="meta"))
        sides[patch] = tuple(seen[0][2:])
    assert sides == {1: (4, 4), 2: (2, 2), 4: (1, 1)}


def test_convnext_refuses_images_that_it_would_shrink_to_nothing() -> None:
    with pytest.raises(
        RobustCliError, match=r"patch: 4 stages and patches of 4 divide the sides by 32, but the images"
    ):
        build("convnext", ImageShape(3, 28, 40, 10), patch=4)
    with pytest.raises(RobustCliError, match=r"depths: 2 stages, but 4 widths"):
        build("convnext", depths=(1, 1))
    with pytest.raises(RobustCliError, match=r"depths: each stage needs at least one block"):
        build("convnext", depths=(1, 0), widths=(4, 8))


def test_stems_lose_the_strides_of_their_first_convolutions() -> None:
    assert [late_strides(patch, (2, 2, 2, 2)) for patch in (16, 8, 4, 2, 1)] == [
        (2, 2, 2, 2),
        (1, 2, 2, 2),
        (1, 1, 2, 2),
        (1, 1, 1, 2),
        (1, 1, 1, 1),
    ]
    assert [late_strides(patch, (2, 2, 1)) for patch in (4, 2, 1)] == [(2, 2, 1), (1, 2, 1), (1, 1, 1)]


@pytest.mark.parametrize(
    ("name", "settings", "place", "layers"),
    [
        ("convnext", {"stem": "conv2", "patch": 4}, "stem", [(3, 48, 3, 2), (48, 96, 3, 2)]),
        (
            "convnext",
            {"stem": "conv3", **convnext_size(128, SMALL, 4)},
            "stem",
            [(3, 64, 3, 2), (64, 96, 3, 2), (96, 128, 3, 1)],
        ),
        (
            "vit",
            {"stem": "conv", "patch": 16, "width": 768, "heads": 12},
            "patch_embed.proj",
            [(3, 48, 3, 2), (48, 96, 3, 2), (96, 192, 3, 2), (192, 384, 3, 2), (384, 768, 1, 1)],
        ),
    ],
)
def test_convolutional_stems_are_the_published_ones(
    name: str, settings: Settings, place: str, layers: list[tuple[int, ...]]
) -> None:
    """Inputs, outputs, kernel and stride of each convolution, at every third place of the public checkpoints."""
    network = build_weightless(name, IMAGENET, **settings)
    stem = network.get_submodule(f"{place}.stem")
    found = [(conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0]) for conv in list(stem)[::3]]  # type: ignore[call-overload]
    assert found == layers
    assert network(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 1000)


# Properties of every network here

TINIES = [
    ("xcit", XCIT),
    ("vit", VIT),
    ("vit", {**VIT, "stem": "conv"}),
    ("convnext", {"depths": (1, 1), "widths": (4, 8)}),
    ("convnext", {"depths": (1, 1), "widths": (4, 8), "stem": "conv3", "patch": 2}),
]


@pytest.mark.parametrize(("name", "settings"), TINIES)
@pytest.mark.parametrize("size", [(1, 8, 8), (1, 28, 28), (3, 16, 20), (3, 64, 64), (3, 224, 224)])
def test_any_size_and_number_of_channels(name: str, settings: Settings, size: tuple[int, int, int]) -> None:
    network = build_weightless(name, ImageShape(*size, classes=7), **settings)
    assert network(torch.empty(2, *size, device="meta")).shape == (2, 7)


@pytest.mark.parametrize(("name", "settings"), TINIES)
def test_bf16_and_channels_last_change_only_rounding(name: str, settings: Settings) -> None:
    with drawn_from(0):
        network = build(name, **settings)
    network, x = stirred(network).requires_grad_(False), images(count=4).requires_grad_()
    exact = network(x)
    (slope,) = torch.autograd.grad(exact.square().sum(), x)
    other = network.to(memory_format=torch.channels_last)
    torch.testing.assert_close(other(x.contiguous(memory_format=torch.channels_last)), exact, atol=1e-4, rtol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = other(x.contiguous(memory_format=torch.channels_last)).float()
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, atol=0.05 * float(exact.detach().abs().max()), rtol=0)
    (coarse,) = torch.autograd.grad(rounded.square().sum(), x)
    assert F.cosine_similarity(slope.flatten(1), coarse.flatten(1)).min() > 0.9


@pytest.mark.parametrize(("name", "settings"), TINIES)
def test_gradients_can_be_differentiated(name: str, settings: Settings) -> None:
    """Gradient alignment and gradient norms need this; fused attention does not support it."""
    with drawn_from(0):
        network = build(name, **settings)
    x = images().requires_grad_()
    (slope,) = torch.autograd.grad(network(x).square().sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0


@pytest.mark.parametrize(("name", "settings"), [TINIES[0], TINIES[1], TINIES[3]])
@pytest.mark.slow
def test_is_traced_as_a_whole(name: str, settings: Settings) -> None:
    """No control flow depends on values, so a compiler finds one graph, including the masks."""
    with drawn_from(0):
        network, x = build(name, **settings, drop_path=0.5).train(), images()
    torch._dynamo.reset()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    found = []
    for call in (compiled, network):
        with drawn_from(1), torch.no_grad():
            found.append(call(x))
    assert torch.equal(*found)
