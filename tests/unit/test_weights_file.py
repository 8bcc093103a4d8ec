"""Weights of other programs: found inside their wrapping, and loaded completely or not at all."""

import argparse
import collections
import os
import random
import tarfile
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.errors import RobustCliError
from robustcli.models.key_families import recognize
from robustcli.models.script import is_torchscript
from robustcli.models.weights_file import Weights, read_weights
from robustcli.models.weights_fit import filled
from robustcli.store.checkpoint import Checkpoint

SHAPE = ImageShape(3, 16, 16, classes=5)

# One of every published form, as its spec has it, with names of weights that RobustBench's class of it uses.
FAMILIES: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("resnet18", {"width": 4}, ("conv1.weight", "bn1.bias", "layer2.0.shortcut.1.running_mean", "linear.bias")),
    ("resnet34", {"width": 4}, ("layer3.5.bn2.weight",)),
    ("resnet50", {"width": 4}, ("layer1.0.conv3.weight", "layer1.0.shortcut.0.weight", "layer4.2.bn3.running_var")),
    ("preact_resnet18", {"form": "a", "width": 4}, ("layer2.0.shortcut.0.weight", "layer1.0.bn1.weight")),
    ("preact_resnet18", {"width": 4}, ("bn.weight", "layer4.1.conv2.weight", "linear.weight")),
    ("preact_resnet50", {"width": 4}, ("layer1.0.bn3.weight",)),
    (
        "preact_resnet18",
        {"form": "dm", "activation": "silu", "width": 4},
        ("conv_2d.weight", "layer_0.1.batchnorm_0.weight", "layer_3.0.shortcut.weight", "logits.bias"),
    ),
    (
        "wide_resnet",
        {"depth": 16, "widen": 2},
        ("conv1.weight", "block1.layer.0.convShortcut.weight", "block3.layer.1.bn2.running_var", "fc.bias"),
    ),
    (
        "wide_resnet",
        {"depth": 10, "widen": 1, "form": "deepmind", "activation": "silu"},
        ("init_conv.weight", "layer.2.block.0.batchnorm_1.weight", "layer.1.block.0.shortcut.weight", "batchnorm.bias"),
    ),
    (
        "xcit",
        {"width": 16, "heads": 2, "depth": 2},
        (
            "cls_token",
            "patch_embed.proj.6.1.running_var",
            "pos_embed.token_projection.bias",
            "blocks.1.attn.temperature",
            "blocks.0.local_mp.bn.weight",
            "cls_attn_blocks.1.attn.q.bias",
            "head.weight",
        ),
    ),
    (
        "vit",
        {"width": 128, "heads": 2, "depth": 2, "patch": 4},
        ("cls_token", "pos_embed", "patch_embed.proj.bias", "blocks.1.attn.qkv.weight", "blocks.0.mlp.fc2.bias"),
    ),
    (
        "vit",
        {"width": 64, "heads": 1, "depth": 1, "patch": 16, "stem": "conv"},
        ("patch_embed.proj.stem.0.weight", "patch_embed.proj.stem.12.bias"),
    ),
    (
        "convnext",
        {"depths": [1, 2], "widths": [8, 16], "patch": 4},
        (
            "stem.0.weight",
            "stem.1.bias",
            "stages.0.blocks.0.gamma",
            "stages.1.downsample.1.weight",
            "stages.1.blocks.1.conv_dw.bias",
            "head.norm.weight",
            "head.fc.bias",
        ),
    ),
    ("convnext", {"depths": [1, 1], "widths": [8, 16], "patch": 4, "stem": "conv2"}, ("stem.stem.4.bias",)),
    ("convnext", {"depths": [1, 1], "widths": [8, 16], "patch": 4, "stem": "conv3"}, ("stem.stem.7.bias",)),
    (
        "wide_resnet",
        {"depth": 10, "widen": 1, "activation": "pssilu"},
        ("activation.alpha", "block1.layer.0.activation.alpha", "block3.layer.0.activation.beta", "bn1.weight"),
    ),
    (
        "robust_arch_wide_resnet",
        {"depths": [1, 2, 1], "widths": [8, 8, 16], "stem": 4},
        ("init_conv.weight", "layer.1.block.1.se.fc1.bias", "layer.2.block.0.se.fc2.weight", "logits.weight"),
    ),
    ("robust_arch_resnet50", {"width": 8}, ("stem.stem.stem.0.weight", "stages.stage3.stage3-block12.F.c.1.bias")),
    ("robust_arch_resnet101", {"width": 8}, ("stages.stage1.stage1-block0.proj.0.weight", "fc.weight")),
    ("robust_arch_wide_resnet101_2", {"width": 8}, ("stages.stage4.stage4-block0.F.se.fc2.bias",)),
    (
        "robust_wide_resnet",
        {"depths": [1, 2, 1], "widths": [2, 2, 1]},
        ("stem_conv.weight", "blocks.0.layer.0.convShortcut.weight", "blocks.1.layer.1.bn2.bias", "bn1.bias"),
    ),
    (
        "robust_resnet",
        {"depths": [2, 2, 1], "widths": [2, 3, 1], "block": "basic", "activation": "silu"},
        ("stem_conv.weight", "blocks.0.layer.0.shortcut.0.weight", "blocks.1.layer.1.conv2.weight", "norm1.bias"),
    ),
    (
        "robust_resnet",
        {"depths": [1, 2, 1], "widths": [1, 2, 1]},
        ("stem_conv.weight", "norm1.weight", "fc.weight"),
    ),
]  # fmt: skip
IDS = [
    f"{name}-{settings.get('form', settings.get('block', settings.get('stem', '')))}" for name, settings, _ in FAMILIES
]


def made(name: str, settings: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """A network with random weights and statistics, so that misplaced ones are found."""
    network: nn.Module = ARCHITECTURES.get(name)(SHAPE, **settings)
    generator = torch.Generator().manual_seed(seed)
    for key, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            drawn = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(drawn + 0.5 if "var" in key else (drawn - 0.5) / 2)
    return network.eval()


def saved(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


def require_equal(one: nn.Module, other: nn.Module) -> None:
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(one.eval()(x), other.eval()(x))


def refusal(call: Any, *arguments: Any) -> str:
    with pytest.raises(RobustCliError) as caught:
        call(*arguments)
    return str(caught.value)


# RobustBench's families


@pytest.mark.parametrize(("name", "settings", "keys"), FAMILIES, ids=IDS)
def test_published_names_are_loaded_through_any_wrapping(
    tmp_path: Path, name: str, settings: dict[str, Any], keys: tuple[str, ...]
) -> None:
    network = made(name, settings)
    state = network.state_dict()
    assert set(keys) <= set(state)
    wrapped = {f"module.model.{key}": tensor for key, tensor in state.items()}
    path = saved(tmp_path / "w.pt", {"state_dict": wrapped, "epoch": 3, "note": "text"})
    body = filled(made(name, settings, seed=2), read_weights(path), name)
    require_equal(body.network, network)
    assert body.notes == (
        "w.pt: weights are those under 'state_dict'",
        "w.pt: 'module.model.' was removed from the beginning of every name",
    )
    assert body.mean is None


@pytest.mark.parametrize(("name", "settings", "keys"), FAMILIES, ids=IDS)
def test_what_a_network_is_can_be_read_from_its_weights(
    name: str, settings: dict[str, Any], keys: tuple[str, ...]
) -> None:
    words = recognize(made(name, settings).state_dict())
    assert words is not None
    architecture, *overrides = words.removeprefix("--architecture ").split()
    assert architecture == name
    pairs = (override.removeprefix("architecture.").split("=") for override in overrides)
    assert {key: yaml.safe_load(value) for key, value in pairs} == settings


def test_other_networks_are_not_recognized() -> None:
    assert recognize(made("small_cnn", {}).state_dict()) is None
    assert recognize({}) is None
    odd = {"conv1.weight": torch.zeros(4, 3, 3, 3), "layer1.0.conv1.weight": torch.zeros(4, 4, 3, 3)}
    assert recognize(odd) is None  # one block in one stage
    distilled = {**made("vit", {"width": 64, "heads": 1, "depth": 1, "patch": 4}).state_dict(), "dist_token": odd}
    assert recognize(distilled) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("model", ["resnet18", "resnet50", "wide_resnet50_2", "resnext50_32x4d", "resnext101_64x4d"])
def test_torchvisions_networks_are_recognized_by_their_classifier_and_width(model: str) -> None:
    with torch.device("meta"):
        network = ARCHITECTURES.get("torchvision")(ImageShape(3, 64, 64, 5), model=model)
    assert recognize(network.state_dict()) == f"--architecture torchvision architecture.model={model}"


def test_residual_networks_that_torchvision_does_not_have_are_not_recognized() -> None:
    with torch.device("meta"):
        state = ARCHITECTURES.get("torchvision")(ImageShape(3, 64, 64, 5), model="resnet18").state_dict()
    assert recognize({**state, "layer1.0.conv2.weight": torch.zeros(128, 128, 3, 3)}) is None


def test_a_dead_stage_of_old_wide_networks_is_left_out(tmp_path: Path) -> None:
    network = made("wide_resnet", {"depth": 10, "widen": 1})
    state = network.state_dict()
    dead = {key.replace("block1", "sub_block1"): tensor for key, tensor in state.items() if key.startswith("block1.")}
    path = saved(tmp_path / "w.pt", {**state, **dead})
    body = filled(made("wide_resnet", {"depth": 10, "widen": 1}, 2), read_weights(path), "wide_resnet")
    require_equal(body.network, network)
    assert body.notes == (f"w.pt: {len(dead)} weights under sub_block1 are never used and were left out",)


def test_counts_of_batches_may_be_missing(tmp_path: Path) -> None:
    network = made("resnet18", {"width": 4})
    state = {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    body = filled(made("resnet18", {"width": 4}, 2), read_weights(saved(tmp_path / "w.pt", state)), "resnet18")
    require_equal(body.network, network)


@pytest.mark.parametrize(
    ("prefix", "inner", "keys"),
    [
        ("", "", ("mean", "std")),
        ("module.", "", ("mu", "sigma")),
        ("", "model.", ("normalize.mean", "normalize.std")),
        ("module.", "model.", ("normalizer.new_mean", "normalizer.new_std")),
        ("", "1.", ("0.mean", "0.std")),
    ],
)
def test_a_normalization_saved_with_the_weights_is_found(
    tmp_path: Path, prefix: str, inner: str, keys: tuple[str, str]
) -> None:
    network = made("wide_resnet", {"depth": 10, "widen": 1, "form": "deepmind"})
    state = {f"{prefix}{inner}{key}": tensor for key, tensor in network.state_dict().items()}
    buffers = {keys[0]: torch.tensor([0.25, 0.5, 0.75]), keys[1]: torch.tensor([0.5, 1.0, 2.0])}
    state |= {f"{prefix}{key}": tensor.view(1, 3, 1, 1) for key, tensor in buffers.items()}
    weights = read_weights(saved(tmp_path / "w.pt", state))
    body = filled(made("wide_resnet", {"depth": 10, "widen": 1, "form": "deepmind"}, 2), weights, "wide_resnet")
    require_equal(body.network, network)
    assert (body.mean, body.std) == ((0.25, 0.5, 0.75), (0.5, 1.0, 2.0))
    assert body.source == "saved in w.pt"


def test_a_mean_without_std_is_no_normalization(tmp_path: Path) -> None:
    state = {**made("small_cnn", {"width": 4}).state_dict(), "mean": torch.zeros(3)}
    weights = read_weights(saved(tmp_path / "w.pt", state))
    assert "1 not in the network: mean [3]" in refusal(filled, made("small_cnn", {"width": 4}), weights, "small_cnn")


class Normalized(nn.Module):
    """A network that contains a normalization and a wrapper."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((3, 1, 1), 0.5))
        self.register_buffer("std", torch.full((3, 1, 1), 0.5))
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(768, 5))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x - self.mean)
        return logits


@pytest.mark.parametrize("prefix", ["", "module."])
def test_what_the_network_itself_has_is_not_taken_for_wrapping(tmp_path: Path, prefix: str) -> None:
    network = Normalized()
    network.mean.fill_(0.125)
    state = {f"{prefix}{key}": tensor for key, tensor in network.state_dict().items()}
    body = filled(Normalized(), read_weights(saved(tmp_path / "w.pt", state)), "mine")
    require_equal(body.network, network)
    assert body.mean is None


# What does not fit


def test_what_does_not_fit_is_named_and_nothing_is_loaded(tmp_path: Path) -> None:
    network = made("preact_resnet18", {"width": 4})
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    state = {**made("resnet18", {"width": 4}, seed=1).state_dict(), "linear.weight": torch.zeros(5, 7)}
    weights = Weights(tmp_path / "w.pt", state)
    text = refusal(filled, network, weights, "preact_resnet18")
    assert text.startswith(f"{tmp_path / 'w.pt'}: does not fit preact_resnet18; the names look like those of ")
    assert "--architecture resnet18 architecture.width=4" in text
    assert "4 missing: bn.weight [32]; bn.bias [32]; bn.running_mean [32]; bn.running_var [32]" in text
    assert "20 not in the network: bn1.weight [4]; bn1.bias [4]" in text
    assert "and 16 more" in text
    assert "of another shape: " in text
    assert "linear.weight [5, 7], expected [5, 32]" in text or "more" in text
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


@pytest.mark.parametrize("classes", [4, 100])
def test_another_number_of_classes_is_named(classes: int) -> None:
    state = ARCHITECTURES.get("resnet18")(ImageShape(3, 16, 16, classes), width=4).state_dict()
    text = refusal(filled, made("resnet18", {"width": 4}), Weights(Path("w.pt"), state), "resnet18")
    assert f"2 of another shape: linear.weight [{classes}, 32], expected [5, 32]" in text
    assert f"the file knows {classes} classes, and the data have 5" in text


def test_another_number_of_channels_is_not_taken_for_classes() -> None:
    state = ARCHITECTURES.get("resnet18")(ImageShape(1, 16, 16, 5), width=4).state_dict()
    text = refusal(filled, made("resnet18", {"width": 4}), Weights(Path("w.pt"), state), "resnet18")
    assert "1 of another shape: conv1.weight [4, 1, 3, 3], expected [4, 3, 3, 3]" in text
    assert "classes" not in text


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_weights_in_another_precision_are_reported(dtype: torch.dtype) -> None:
    network = made("small_cnn", {"width": 4})
    state = {key: tensor.to(dtype) for key, tensor in network.state_dict().items()}
    other = made("small_cnn", {"width": 4}, 2)
    assert [*filled(other, Weights(Path("w.pt"), state), "x").notes] == [
        f"w.pt: weights in {str(dtype)[6:]} are evaluated in float32"
    ]
    assert all(tensor.dtype == torch.float32 for tensor in other.state_dict().values())


# Reading


STATE = {"layer.weight": torch.zeros(2, 3), "layer.bias": torch.zeros(2)}


@pytest.mark.parametrize(
    ("contents", "where"),
    [
        (STATE, ""),
        ({"net": STATE}, "net"),
        ({"model": STATE, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": []}}, "model"),
        ({"last": {"state_dict": STATE}, "epoch": 1}, "last.state_dict"),
    ],
)
def test_weights_are_found_in_what_is_around_them(tmp_path: Path, contents: Any, where: str) -> None:
    weights = read_weights(saved(tmp_path / "w.pt", contents))
    assert set(weights.tensors) == set(STATE)
    (only,) = weights.candidates()
    assert only.notes == ((f"w.pt: weights are those under '{where}'",) if where else ())


class Layer(nn.Module):
    """A network of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)


def test_of_several_weights_that_fit_one_is_to_be_chosen(tmp_path: Path) -> None:
    other = {"layer.weight": torch.ones(2, 3), "layer.bias": torch.zeros(2)}
    path = saved(tmp_path / "w.pt", {"model": STATE, "ema": other})
    text = refusal(filled, Layer(), read_weights(path), "x")
    assert text.endswith("choose one with --weights-key (known: model, ema)")
    filled(chosen := Layer(), read_weights(path, "ema"), "x")
    assert torch.equal(chosen.layer.weight, torch.ones(2, 3))
    assert "no weights under 'emma'; did you mean 'ema'?" in refusal(read_weights, path, "emma")


def test_of_several_weights_those_that_fit_are_taken(tmp_path: Path) -> None:
    teacher = {"other.weight": torch.ones(5, 3), "other.bias": torch.zeros(5)}
    path = saved(tmp_path / "w.pt", {"teacher": teacher, "student": STATE, "copy": STATE})
    found = filled(Layer(), read_weights(path), "x")
    assert found.notes == ("w.pt: weights are those under 'student'",)


class Harmful:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_objects_are_skipped_and_named_and_their_code_is_never_run(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", {"state_dict": STATE, "extra": Harmful(tmp_path / "made")})
    weights = read_weights(path)
    assert set(weights.tensors) == set(STATE)
    assert weights.notes == ("w.pt: objects that are not plain data were skipped unread (posix.mkdir)",)
    assert not (tmp_path / "made").exists()


def test_a_network_that_was_saved_whole_is_read_as_its_weights(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)))
    weights = read_weights(saved(tmp_path / "w.pt", {"net": network}))
    assert weights.tensors.keys() == network.state_dict().keys()
    assert all(torch.equal(tensor, weights.tensors[key]) for key, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("contents", "text"),
    [
        ({}, "holds no weights (found nothing)"),
        ({"epoch": 3, "lr": 0.1}, "holds no weights (found epoch, lr)"),
        (torch.zeros(3), "holds no weights (found Tensor)"),
        ([STATE], "holds no weights (found list)"),
        ({"format": 1, "spec": "x", "weights": STATE}, "names its own network; evaluate it without"),
    ],
)
def test_files_without_weights_are_refused(tmp_path: Path, contents: Any, text: str) -> None:
    assert text in refusal(read_weights, saved(tmp_path / "w.pt", contents))


def test_what_is_not_there_or_no_such_file_is_refused(tmp_path: Path) -> None:
    assert "gone.pt: no such file" in refusal(read_weights, tmp_path / "gone.pt")
    assert "is a folder; expected a file of weights" in refusal(read_weights, tmp_path)
    (tmp_path / "text.pt").write_text("hello")
    assert "the file is a text that begins with 'hello'" in refusal(read_weights, tmp_path / "text.pt")


@pytest.mark.parametrize(
    ("start", "text"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><title>Quota exceeded</title>", "an HTML or XML page"),
        (b"\n\n  <html>", "an HTML or XML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "a Git LFS pointer"),
        (b"PK\x03\x04 and no more", "truncated"),
        (b"\x1f\x8b\x08", "a gzip archive"),
    ],
)
def test_files_of_another_kind_are_called_what_they_are(tmp_path: Path, start: bytes, text: str) -> None:
    (tmp_path / "w.pt").write_bytes(start)
    assert text in refusal(read_weights, tmp_path / "w.pt")
    assert text in refusal(Checkpoint.read, tmp_path / "w.pt")


def test_an_archive_of_weights_is_to_be_unpacked(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "w.tar", "w") as archive:
        archive.add(saved(tmp_path / "w.pt", STATE), "w.pt")
    assert "a tar archive" in refusal(read_weights, tmp_path / "w.tar")


# Weights as people save them


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 3))


GIVEN = small().state_dict()
EXTRA = {"criterion.weight": torch.ones(3)}


@pytest.mark.parametrize(
    ("contents", "note"),
    [
        ({"state_dict": GIVEN, "best": np.float64(0.9)}, "not plain data were skipped unread (numpy"),
        ({"state_dict": GIVEN, "args": argparse.Namespace(lr=0.1)}, "skipped unread (argparse.Namespace)"),
        ({"state_dict": GIVEN, "history": collections.defaultdict(list, loss=[1.0])}, "under 'state_dict'"),
        (argparse.Namespace(net=GIVEN), "under 'net'"),
        ({**GIVEN, "epoch": 3}, "entries next to the weights are not tensors and were left out (epoch)"),
        ({**GIVEN, "0._extra_state": None}, "left out (0._extra_state)"),
        ({"a": {"b": {"c": GIVEN}}}, "under 'a.b.c'"),
        ({"state_dict": {**{f"net.{k}": v for k, v in GIVEN.items()}, **EXTRA}}, "1 other was ignored (criterion.w"),
        ({f"model.module.{k}": v for k, v in GIVEN.items()}, "'model.' was removed"),
        ({k.replace("0.", "0._orig_mod.", 1): v for k, v in GIVEN.items()}, "'_orig_mod.' was removed from the names"),
        ({f"_orig_mod.{k}": v for k, v in GIVEN.items()}, "'_orig_mod.' was removed"),
        ({k.replace("3.", "3.module.", 1): v for k, v in GIVEN.items()}, "'module.' was removed from the names"),
        (
            {**{f"1.{k}": v for k, v in GIVEN.items()}, "0.mean": torch.zeros(1), "0.std": torch.ones(1)},
            "weights are those whose names begin with '1.'",
        ),
        ({"model": GIVEN, "optimizer": torch.optim.Adam(small().parameters()).state_dict()}, "under 'model'"),
    ],
)
def test_weights_are_read_as_people_save_them(tmp_path: Path, contents: Any, note: str) -> None:
    network = small()
    found = filled(network, read_weights(saved(tmp_path / "w.pt", contents)), "x")
    assert all(torch.equal(tensor, GIVEN[key]) for key, tensor in network.state_dict().items())
    assert any(note in text for text in found.notes), found.notes


class OwnNames(nn.Module):
    """A network whose parameters are not called weight or bias."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(4, 3))
        self.b = nn.Parameter(torch.zeros(3))


def test_parameters_may_have_other_names(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", {"w": torch.ones(4, 3), "b": torch.ones(3)})
    filled(network := OwnNames(), read_weights(path), "x")
    assert torch.equal(network.w, torch.ones(4, 3))


@pytest.mark.parametrize("key", ["ema", "state_dict.ema", "ema."])
def test_a_key_may_be_a_prefix(tmp_path: Path, key: str) -> None:
    both = {f"{head}.{name}": one for head in ("net", "ema") for name, one in GIVEN.items()}
    path = saved(tmp_path / "w.pt", {"state_dict": both, "epoch": 1})
    assert "holds several sets of weights that fit, under net., ema.;" in refusal(
        filled, small(), read_weights(path), ""
    )
    found = filled(small(), read_weights(path, key), "x")
    assert found.notes[-1] == "w.pt: weights are those whose names begin with 'ema.'"


def quantized(tensor: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its deprecation
        return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda one: one.to_sparse(), "sparse; save it with .to_dense()"),
        (quantized, "quantized"),
        (lambda one: one.to("meta"), "on the device meta, so it has no values"),
        (lambda one: one.to(torch.int8), "int8, but the network's is float32"),
        (lambda one: one.to(torch.bool), "bool, but the network's is float32"),
        (lambda one: one.to(torch.complex64), "complex64, and the network's is float32"),
    ],
)
def test_tensors_that_are_no_plain_numbers_are_refused(tmp_path: Path, change: Any, text: str) -> None:
    path = saved(tmp_path / "w.pt", {**GIVEN, "3.weight": change(GIVEN["3.weight"])})
    assert text in refusal(filled, small(), read_weights(path), "x")


def test_a_network_with_extra_state_takes_weights(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"version": 3}

        def set_extra_state(self, state: Any) -> None:
            assert state == {"version": 3}

    path = saved(tmp_path / "w.pt", Extra(2, 2).state_dict())
    filled(Extra(2, 2), read_weights(path), "x")


def scripted(path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of newer exporters
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(path))  # type: ignore[no-untyped-call]
    return path


def test_torchscript_is_distinguished_from_weights(tmp_path: Path) -> None:
    path = scripted(tmp_path / "script.pt")
    assert is_torchscript(path)
    assert "is TorchScript" in refusal(read_weights, path)
    assert not is_torchscript(saved(tmp_path / "w.pt", STATE))
    assert not is_torchscript(tmp_path / "gone.pt")


def test_no_bytes_whatever_end_in_another_error(tmp_path: Path) -> None:
    rng = random.Random(0)
    wholes = (saved(tmp_path / "w.pt", STATE).read_bytes(), scripted(tmp_path / "script.pt").read_bytes())
    path = tmp_path / "broken.pt"
    for number in range(200):
        data = bytearray(wholes[number % 2])
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data[: rng.randrange(len(data))] if number % 3 == 0 else data)
        with warnings.catch_warnings(), suppress(RobustCliError):
            warnings.simplefilter("ignore")
            read_weights(path)
