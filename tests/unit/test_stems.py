"""Networks of torchvision and timm with a stem for small images: sizes by arithmetic, maps, weights and refusals."""

import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import CIFAR, build, build_weightless, count_macs, count_parameters
from torch import nn

from robustcli.architectures import ImageShape
from robustcli.architectures.stems import make_stem_small
from robustcli.cli.progress import Screen
from robustcli.contracts.networks import drawn_from
from robustcli.errors import RobustCliError
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.files import read_json
from robustcli.workflows.train import run_experiment

pytestmark = pytest.mark.slow

with_timm = pytest.mark.skipif(find_spec("timm") is None, reason="needs the package timm")


def refused(name: str, shape: ImageShape = CIFAR, **settings: Any) -> str:
    with pytest.raises(RobustCliError) as caught:
        build_weightless(name, shape, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Of 3x3 instead of 7x7 kernels from 3 channels to 64.
SAVED = (7 * 7 - 3 * 3) * 3 * 64
SIZES = [
    ("torchvision", "resnet18", 11_173_962, 0.5554),
    ("torchvision", "resnet50", 23_520_842, 1.2978),
    ("torchvision", "densenet121", 6_964_106 - SAVED, None),
    # With 3x3 kernels the stem keeps its weights.
    ("torchvision", "mobilenet_v2", 2_236_682, None),
    pytest.param("timm", "resnet18", 11_173_962, 0.5554, marks=with_timm),
    pytest.param("timm", "resnetv2_50", 23_513_162, None, marks=with_timm),
    pytest.param("timm", "skresnet18", 11_442_506, 0.5557, marks=with_timm),
    pytest.param("timm", "skresnet34", 21_766_826, 1.1599, marks=with_timm),
]


@pytest.mark.parametrize(("name", "model", "count", "gigamacs"), SIZES)
def test_sizes_are_those_of_networks_for_small_images(name: str, model: str, count: int, gigamacs: float) -> None:
    network = build_weightless(name, model=model, stem="small")
    assert count_parameters(network) == count
    if gigamacs is not None:
        assert round(count_macs(network, CIFAR) / 1e9, 4) == gigamacs


@pytest.mark.parametrize(
    ("model", "count", "gigamacs"),
    [("regnet_x_400mf", 5_098_986, 0.0338), ("regnet_y_400mf", 3_907_554, 0.0334)],
)
def test_a_regnet_for_imagenet_with_a_stem_of_stride_1(model: str, count: int, gigamacs: float) -> None:
    network = build("torchvision", model=model, stem="small").to("meta")
    assert count_parameters(network) == count
    assert round(count_macs(network, CIFAR) / 1e9, 4) == gigamacs


@pytest.mark.parametrize(
    ("name", "model", "last", "usual", "small"),
    [
        ("torchvision", "resnet18", "layer4", 1, 4),
        ("torchvision", "mobilenet_v2", "features", 1, 2),
        ("torchvision", "shufflenet_v2_x0_5", "conv5", 1, 4),
        ("torchvision", "efficientnet_b0", "features", 1, 2),
        ("torchvision", "googlenet", "inception5b", 1, 4),
        # Three convolutions and a pool.
        pytest.param("timm", "resnet50d", "layer4", 1, 4, marks=with_timm),
        # A convolution that pads by itself, from its kernel and its stride.
        pytest.param("timm", "tf_efficientnet_b0", "conv_head", 1, 2, marks=with_timm),
    ],
)
def test_maps_are_larger_by_what_the_stem_no_longer_shrinks(
    name: str, model: str, last: str, usual: int, small: int
) -> None:
    sides = []
    for stem in ("as_it_is", "small"):
        network = build_weightless(name, model=model, stem=stem).eval()
        network.get_submodule(last).register_forward_hook(lambda _layer, _inputs, out: sides.append(out.shape[-1]))
        network(torch.empty(1, 3, 32, 32, device="meta"))
    assert sides == [usual, small]


def test_a_small_stem_makes_torchvisions_resnet_the_one_of_this_project() -> None:
    with drawn_from(0):
        network = build("torchvision", model="resnet18", stem="small").eval()
    ours = build("resnet18").eval()
    names = {"downsample": "shortcut", "fc": "linear"}
    state = {
        re.sub("downsample|fc", lambda found: names[found[0]], key): tensor
        for key, tensor in network.state_dict().items()
    }
    ours.load_state_dict(state, strict=True)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network(x), ours(x))


def test_the_middle_of_a_drawn_kernel_is_spread_as_a_small_kernel_is() -> None:
    with drawn_from(0):
        usual = build("torchvision", model="resnet18")
    with drawn_from(0):
        small = build("torchvision", model="resnet18", stem="small")
    kernel = small.conv1.weight
    assert isinstance(kernel, nn.Parameter)
    assert kernel.requires_grad
    torch.testing.assert_close(kernel.detach(), usual.conv1.weight.detach()[:, :, 2:5, 2:5] * 7 / 3)
    # torchvision draws from N(0, 2 / (k^2 outputs)).
    assert float(kernel.detach().std()) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)
    assert all(
        torch.equal(small.state_dict()[key], value)
        for key, value in usual.state_dict().items()
        if "conv1.w" not in key or "layer" in key
    )
    assert small.training


@pytest.mark.parametrize(
    ("name", "model", "texts"),
    [
        ("torchvision", "vgg11", ("3x3 with stride 1, which keeps the resolution; write stem: as_it_is",)),
        ("torchvision", "convnext_tiny", ("4x4 with stride 4, so it cuts images into patches", "convnext, vit")),
        ("torchvision", "vit_b_16", ("'vit_b_16'", "patches")),
        ("torchvision", "swin_t", ("patches",)),
        ("torchvision", "alexnet", ("11x11 with stride 4, but the supported stems are 3x3", "wide_resnet")),
        # Its later layers need more than 32 pixels with this stem too.
        ("torchvision", "inception_v3", ("cannot take images of 32x32 pixels with a small stem",)),
        pytest.param("timm", "resnetblur50", ("BlurPool2d, neither a pool nor a convolution",), marks=with_timm),
        pytest.param("timm", "tresnet_m", ("does not start with a convolution of the image",), marks=with_timm),
        # The sizes of its maps are built into it.
        pytest.param("timm", "levit_128s", ("cannot take 3x32x32 images of 10 classes with a small",), marks=with_timm),
    ],
)  # fmt: skip
def test_other_stems_are_refused(name: str, model: str, texts: tuple[str, ...]) -> None:
    said = refused(name, model=model, stem="small")
    assert all(text in said for text in texts), said


class Functional(nn.Module):
    """A convolution and a pool that is no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, 2, 1)
        self.second = nn.Conv2d(4, 10, 3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.max_pool2d(self.first(x), 2)
        return self.second(x).mean((2, 3))


def test_what_no_layer_does_cannot_be_taken_away() -> None:
    with pytest.raises(RobustCliError, match="the maps of its first convolution are shrunk outside any layer"):
        make_stem_small(Functional(), CIFAR, "functional")
    with pytest.raises(RobustCliError, match="does not start with a convolution of the image"):
        make_stem_small(nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), CIFAR, "linear")


def test_a_network_is_as_it_was_after_a_refusal_and_in_training_mode() -> None:
    network = Functional()
    with pytest.raises(RobustCliError):
        make_stem_small(network, CIFAR, "functional")
    assert network.first.stride == (2, 2)
    assert network.training
    assert not network.first._forward_hooks


SPEC = """
name: stem
seed: 1
data: {name: npz, path: DATA, val_size: 4}
architecture: {name: NAME, model: MODEL, stem: small}
threat: {norm: linf, eps: 8/255}
defense: {name: pgd_at, steps: 1}
train: {epochs: 1, batch_size: 8, lr: 1e-3, check_examples: 4, check_steps: 1, device: cpu}
evaluate: {clean: clean}
"""


@pytest.mark.parametrize(
    ("name", "model", "channels"),
    [
        ("torchvision", "shufflenet_v2_x0_5", 3),
        pytest.param("timm", "mobilenetv3_small_050", 1, marks=with_timm),
    ],
)
def test_a_step_is_trained_from_yaml(tmp_path: Path, name: str, model: str, channels: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (16, 16, 16, channels), dtype=np.uint8)
    parts = {"x_train": x[:12], "y_train": np.arange(12) % 3, "x_test": x[12:], "y_test": np.arange(4) % 3}
    np.savez(tmp_path / "x.npz", **parts)
    text = SPEC.replace("DATA", str(tmp_path / "x.npz")).replace("NAME", name).replace("MODEL", model)
    spec = ExperimentSpec.parse(text, "the test")
    run = run_experiment(spec, tmp_path / "runs", Screen(is_quiet=True))
    assert read_json(run.results)["evaluations"]["clean"]["total"] == 4


def test_a_stem_that_is_not_written_leaves_the_digest_as_it_was() -> None:
    text = SPEC.replace("DATA", "x.npz").replace("NAME", "torchvision").replace("MODEL", "resnet18")
    usual, small = (
        ExperimentSpec.parse(text.replace(", stem: small", stem), "the test") for stem in ("", ", stem: small")
    )
    assert ExperimentSpec.parse(text.replace("stem: small", "stem: as_it_is"), "the test").digest == usual.digest
    assert usual.digest != small.digest
    # As it was before there was a stem to choose.
    assert usual.digest == "e2fb3ea2"


# timm


@with_timm
@pytest.mark.parametrize(
    ("model", "shape", "parts"),
    [
        # Sizes of images, channels and classes reach the network: one position for each of 4x4 patches, and a class.
        (
            "vit_tiny_patch16_224",
            ImageShape(1, 64, 64, 7),
            {"pos_embed": (1, 17, 192), "head.weight": (7, 192), "patch_embed.proj.weight": (192, 1, 16, 16)},
        ),
        ("resnet18", ImageShape(1, 28, 28, 7), {"conv1.weight": (64, 1, 7, 7), "fc.weight": (7, 512)}),
    ],
)
def test_a_network_of_timm_is_built_for_the_data(model: str, shape: ImageShape, parts: dict[str, Any]) -> None:
    state = build_weightless("timm", shape, model=model).state_dict()
    assert {key: tuple(state[key].shape) for key in parts} == parts


@with_timm
def test_names_that_timm_does_not_have_and_images_that_are_too_small_are_refused() -> None:
    said = refused("timm", model="resnet18x")
    assert "architecture.model: timm has no network 'resnet18x'; did you mean 'resnet18" in said
    assert len(said) < 200
    said = refused("timm", ImageShape(3, 8, 8, 10), model="inception_v3")
    assert "timm's 'inception_v3' cannot take 3x8x8 images of 10 classes (RuntimeError: " in said


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "pip install timm" in refused("timm", model="resnet18")


@with_timm
def test_what_gives_no_logits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    monkeypatch.setattr(timm, "create_model", lambda *_, **__: nn.Identity())
    said = refused("timm", model="resnet18")
    assert "one image gives a tensor of shape [1, 3, 32, 32], not 10 logits" in said
