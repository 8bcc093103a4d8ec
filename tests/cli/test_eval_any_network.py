"""`robust eval` on networks that were not trained with `robust train`."""

import json
import re
import sys
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from shell import Robust
from torch import nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.store.checkpoint import Checkpoint, NetworkCheckpoint
from robustcli.store.runs import RunFolder

THREAT = ("--norm", "linf", "--eps", "0.1")
FEW = ("--attack", "pgd", "--steps", 2, "--examples", 40)
SMALL = ("--architecture", "small_cnn", "architecture.width=4", "architecture.hidden=16")
DIGITS = ("--data", "digits")
BUILD = ("--model", "mine.py:build")
NONE = ("--mean", 0, "--std", 1)
CODE = """\
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 4, 2, 1), nn.ReLU(), nn.Conv2d(4, 8, 4, 2, 1), nn.ReLU(), nn.Flatten(),
            nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, classes),
        )

    def forward(self, x):
        return self.layers(x)

def build():
    return Net()

def wide(classes, extra=1):
    return Net(classes)

def seven():
    return Net(7)

def needs(width, classes):
    return Net()

def fails():
    return undefined

ready = Net()
number = 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory; changes of the import system by user code are undone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if name.startswith("robust_eval_model_") or name in ("mine", "parts"):
            del sys.modules[name]


@pytest.fixture
def state(trained: RunFolder) -> dict[str, Any]:
    """The weights of the tiny run: a small_cnn behind the normalization of digits."""
    weights: dict[str, Any] = Checkpoint.read(trained.best).weights
    return weights


@pytest.fixture
def body(state: dict[str, Any]) -> dict[str, Any]:
    """The weights of its network without normalization."""
    return {key.removeprefix("body."): value for key, value in state.items() if key.startswith("body.")}


def evaluated(robust: Robust, *words: object) -> dict[str, Any]:
    said = robust("eval", *words, "--json", "--quiet").require(0)
    value: dict[str, Any] = json.loads(said.out)
    return value


def survivors(value: dict[str, Any]) -> dict[str, str]:
    return {key: result["survivors"] for key, result in value["evaluations"].items()}


@pytest.fixture
def own(robust: Robust, trained: RunFolder) -> dict[str, Any]:
    """The result of the checkpoint itself."""
    return evaluated(robust, trained.best, *FEW)


# Weights in an architecture


def test_weights_give_the_numbers_of_their_checkpoint(
    robust: Robust, here: Path, body: dict[str, Any], own: dict[str, Any]
) -> None:
    torch.save({"state_dict": {f"module.{key}": value for key, value in body.items()}}, "weights.pt")
    said = ("--mean", own["network"]["mean"][0], "--std", own["network"]["std"][0])
    value = evaluated(robust, "weights.pt", *SMALL, "--data", "digits", *THREAT, *FEW, *said)
    assert survivors(value) == survivors(own)
    assert value["network"] == own["network"]  # the same digest and normalization
    assert (value["name"], value["checkpoint"], value["spec_digest"]) == ("weights.pt", None, None)
    assert own["checkpoint"] == "best.pt"
    notes = "\n".join(value["notes"])
    built = "small_cnn with activation=relu channel_gate=none width=4 hidden=16"
    for text in ("'state_dict'", "'module.' was removed", built):
        assert text in notes
    shown = robust("eval", "weights.pt", *SMALL, "--data", "digits", *THREAT, *FEW, *said).require(0)
    assert "normalization before the network: mean 0.3056, std 0.3763" in shown.out


def test_a_normalization_in_the_file_is_used_and_reported(
    robust: Robust, here: Path, state: dict[str, Any], own: dict[str, Any]
) -> None:
    torch.save(state, "whole.pt")
    value = evaluated(robust, "whole.pt", *SMALL, "--data", "digits", *THREAT, *FEW)
    assert survivors(value) == survivors(own)
    assert any("(saved in whole.pt)" in note for note in value["notes"])
    bare = evaluated(robust, "whole.pt", *SMALL, "architecture.normalize=none", "--data", "digits", *THREAT, *FEW)
    assert (bare["network"]["mean"], bare["network"]["std"]) == ([0.0], [1.0])
    assert "the normalization saved in whole.pt was ignored" in bare["notes"]


def test_the_user_can_set_the_normalization(robust: Robust, here: Path, body: dict[str, Any]) -> None:
    torch.save(body, "w.pt")
    words = ("w.pt", *SMALL, "--data", "digits", "--attack", "clean")
    said, none, bare = (
        evaluated(robust, *words, *more)
        for more in (
            ("--mean", "0.25", "--std", "0.5"),
            ("--mean=0", "--std=1"),
            ("architecture.normalize=none", "--fresh"),
        )
    )
    assert (said["network"]["mean"], said["network"]["std"]) == ([0.25], [0.5])
    assert "normalization before the network: mean 0.25, std 0.5 (as --mean and --std say)" in said["notes"]
    assert none["network"] == bare["network"]
    assert "none, pixels in [0, 1] are used unchanged (as architecture.normalize=none says)" in bare["notes"][-1]


def test_without_attack_clean_and_autoattack_are_run(robust: Robust, here: Path, body: dict[str, Any]) -> None:
    torch.save(body, "w.pt")
    words = ("w.pt", *SMALL, "--data", "digits", *THREAT, "--examples", 3, *NONE)
    assert list(evaluated(robust, *words)["evaluations"]) == ["clean", "autoattack"]
    assert evaluated(robust, *words, "--batch-size", 2, "--attack", "clean")["threat"] == {"norm": "linf", "eps": "0.1"}


def test_an_evaluation_of_a_foreign_network_can_be_compared(
    robust: Robust, here: Path, trained: RunFolder, body: dict[str, Any]
) -> None:
    torch.save(body, "w.pt")
    words = ("w.pt", *SMALL, "--data", "digits", *THREAT, "--attack", "pgd", "--steps", 3, *NONE)
    evaluated(robust, *words, "--out", "w.json")
    robust("compare", trained.path, "w.json", "--key", "pgd").require(0, "pgd: no difference can be claimed")


def test_images_come_from_where_data_and_overrides_say(robust: Robust, here: Path, body: dict[str, Any]) -> None:
    torch.save(body, "w.pt")
    x = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    np.savez("ten.npz", x_test=x, y_test=np.arange(20) % 10)
    for words in (("--data", "ten.npz"), ("data={name: npz, path: ten.npz}",)):
        value = evaluated(robust, "w.pt", *SMALL, *words, "--attack", "clean", *NONE)
        assert value["evaluations"]["clean"]["total"] == 20
    robust("eval", "w.pt", *SMALL, "--data", "mnist", "data.root=nowhere", "--attack", "clean").require(2, "nowhere")


def test_the_first_images_of_a_sorted_file_are_no_sample(robust: Robust, here: Path, body: dict[str, Any]) -> None:
    torch.save(body, "w.pt")
    x = np.random.default_rng(0).integers(256, size=(40, 8, 8), dtype=np.uint8)
    order = np.arange(40)
    for name, labels in (("sorted", order // 4), ("mixed", order % 10)):
        np.savez(f"{name}.npz", x_test=x, y_test=labels)
    words = ("w.pt", *SMALL, *THREAT, *NONE, "--attack", "fgsm", "--data")
    warning = "the first 8 do not represent all 40: they have 2 of 10 classes"
    for name, count, is_warned in (("sorted", 8, True), ("sorted", 40, False), ("mixed", 8, False)):
        said = robust("eval", *words, f"{name}.npz", "--examples", count, "--json").require(0)
        (found,) = json.loads(said.out)["evaluations"].values()
        assert any(warning in text for text in found["warnings"]) == is_warned, (name, count)


def test_overrides_of_data_apply_to_the_requested_data(robust: Robust, trained: RunFolder) -> None:
    words = ("--data", "mnist", "data.root=nowhere", "--attack", "clean")
    robust("eval", trained.best, *words).require(2, "data.root: MNIST is not in", "nowhere")


# Code


@pytest.mark.parametrize("function", ["build", "wide", "Net", "ready"])
def test_a_function_in_a_file_builds_the_network(
    robust: Robust, here: Path, body: dict[str, Any], own: dict[str, Any], function: str
) -> None:
    (here / "mine.py").write_text(CODE)
    torch.save({f"layers.{key}": value for key, value in body.items()}, "w.pt")
    mean, std = own["network"]["mean"][0], own["network"]["std"][0]
    words = ("--weights", "w.pt", "--mean", mean, "--std", std, "--data", "digits")
    value = evaluated(robust, "--model", f"mine.py:{function}", *words, *THREAT, *FEW)
    assert survivors(value) == survivors(own)
    assert value["name"] == f"mine.py:{function}"


def test_a_function_in_a_module_builds_a_network_with_its_normalization(robust: Robust, here: Path) -> None:
    (here / "parts.py").write_text(CODE)
    (here / "mine.py").write_text("from parts import Net\n\ndef build(classes):\n    return Net(classes)\n")
    for place in ("mine", "mine.py"):
        value = evaluated(robust, "--model", f"{place}:build", "data={name: digits}", "--attack", "clean")
        assert value["network"]["mean"] == [0.0]
        assert "(found on clean images)" in value["notes"][-1]


# TorchScript


class Whole(nn.Module):
    """Normalization and network in one, as people script them."""

    def __init__(self, body: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.body, self.mean, self.std = body, mean, std

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.body((x - self.mean) / self.std)
        return logits


@pytest.mark.parametrize("how", ["script", "trace"])
def test_torchscript_brings_its_network(
    robust: Robust, here: Path, trained: RunFolder, own: dict[str, Any], how: str
) -> None:
    from robustcli.models.build import network_of

    _, network = network_of(NetworkCheckpoint.read(trained.best), torch.device("cpu"), trained.best)
    whole = Whole(network.body, own["network"]["mean"][0], own["network"]["std"][0])
    whole.train()  # a frequent mistake
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of newer exporters
        made = torch.jit.script(whole) if how == "script" else torch.jit.trace(whole, torch.rand(2, 1, 8, 8))  # type: ignore[no-untyped-call]
        torch.jit.save(made, "net.pt")  # type: ignore[no-untyped-call]
    value = evaluated(robust, "net.pt", "--data", "digits", *THREAT, *FEW)
    assert survivors(value) == survivors(own)
    assert value["evaluations"]["pgd"]["gradients"] == own["evaluations"]["pgd"]["gradients"]
    robust("eval", "net.pt", "--architecture", "small_cnn", "--data", "digits").require(2, "is TorchScript")
    np.savez("rgb.npz", x_test=np.zeros((20, 8, 8, 3), dtype=np.uint8), y_test=np.arange(20) % 10)
    said = robust("eval", "net.pt", "--data", "rgb.npz", "--attack", "clean")
    said.require(2, "net.pt: does not take 3x8x8 images of 10 classes: the network fails on a batch of 2 images")
    assert said.err.count("\n") == 1


def test_half_a_torchscript_file_is_refused(robust: Robust, here: Path) -> None:
    import zipfile

    with zipfile.ZipFile("net.pt", "w") as archive:
        archive.writestr("net/constants.pkl", b"")
    robust("eval", "net.pt", "--data", "digits", *THREAT).require(2, "net.pt: TorchScript that cannot be loaded")


# Zoos


def rgb(path: Path, classes: int, side: int = 64) -> str:
    x = np.random.default_rng(0).integers(0, 256, (4, side, side, 3), dtype=np.uint8)
    names = np.array([str(number) for number in range(classes)])
    np.savez(path, x_test=x, y_test=np.arange(4) % 2, classes=names)
    return str(path)


SHUFFLE = "torchvision:shufflenet_v2_x0_5"


def test_torchvision_with_weights_of_a_file(robust: Robust, here: Path) -> None:
    network = torchvision.models.get_model("shufflenet_v2_x0_5", weights=None, num_classes=3)
    torch.save(network.state_dict(), "w.pt")
    words = (SHUFFLE, "--weights", "w.pt", "--data", rgb(here / "x.npz", 3), "--attack", "clean", *NONE)
    assert evaluated(robust, *words)["name"] == "w.pt"
    other = (SHUFFLE, "--weights", "w.pt", "--data", rgb(here / "y.npz", 4), "--attack", "clean")
    robust("eval", *other).require(2, "does not fit torchvision with model=shufflenet", "knows 3 classes, and the data")


def test_torchvision_with_published_weights(robust: Robust, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def get_model(name: str, weights: Any) -> nn.Module:
        asked.append((name, weights.name))
        network: nn.Module = torchvision.models.shufflenet_v2_x0_5(weights=None)
        return network

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    words = (SHUFFLE, "--weights", "DEFAULT", "--data", rgb(here / "x.npz", 1000), "--attack", "clean")
    value = evaluated(robust, *words)
    assert asked == [("shufflenet_v2_x0_5", "IMAGENET1K_V1")]
    assert value["network"]["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert "(of torchvision's weights IMAGENET1K_V1)" in value["notes"][-1]
    few = (SHUFFLE, "--weights", "DEFAULT", "--data", rgb(here / "y.npz", 10), "--attack", "clean")
    robust("eval", *few).require(2, "gives 1000 classes for 2 images; the data have 10 classes")

    def gone(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models, "get_model", gone)
    robust("eval", *words).require(2, "its weights IMAGENET1K_V1 cannot be downloaded: no route to host")


def test_images_of_a_folder_get_the_size_that_published_weights_were_made_for(here: Path) -> None:
    from robustcli.models.find import find_model
    from robustcli.store.results import ModelRequest

    (here / "photos").mkdir()
    subject = find_model(ModelRequest(text=SHUFFLE, weights="DEFAULT", data="photos"))
    assert subject.defaults.data.parameters["size"] == 224
    other = find_model(ModelRequest(text=SHUFFLE, weights="DEFAULT", data="photos", overrides=("data.size=96",)))
    assert other.defaults.data.parameters["size"] == 96


@pytest.mark.parametrize("zoo", ["torchvision", "timm"])
@pytest.mark.slow
def test_the_stem_of_a_zoo_network_can_be_set(robust: Robust, here: Path, zoo: str) -> None:
    if zoo == "timm" and find_spec("timm") is None:
        pytest.skip("needs the package timm")
    network = ARCHITECTURES.get("resnet18")(ImageShape(3, 32, 32, 3))
    names = {"shortcut": "downsample", "linear": "fc"}
    state = {
        re.sub("shortcut|linear", lambda found: names[found[0]], key): tensor
        for key, tensor in network.state_dict().items()
    }
    torch.save(state, "w.pt")
    torch.save(network.state_dict(), "ours.pt")
    data = ("--data", rgb(here / "x.npz", 3, side=32), "--attack", "clean", *NONE)
    robust("eval", f"{zoo}:resnet18", "--weights", "w.pt", *data).require(2, "[64, 3, 3, 3], expected [64, 3, 7, 7]")
    value = evaluated(robust, f"{zoo}:resnet18", "--weights", "w.pt", *data, "architecture.stem=small")
    ours = evaluated(robust, "ours.pt", "--architecture", "resnet18", *data)
    assert survivors(value) == survivors(ours)


class Timm(nn.Module):
    """Metadata of timm's networks."""

    def __init__(self, num_classes: int = 5, in_chans: int = 3) -> None:
        super().__init__()
        self.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
        self.head = nn.Linear(in_chans, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(x.mean((2, 3)))
        return logits


def test_timm_networks_are_built_by_their_timm_names(
    robust: Robust, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create_model(name: str, pretrained: bool, **settings: int) -> nn.Module:
        if pretrained and name == "tiny.none":
            raise RuntimeError("no pretrained weights exist")
        return Timm(**settings)

    def get_pretrained_cfg(name: str) -> None:
        if name == "tiny.tog":
            raise RuntimeError("Invalid pretrained tag")

    fake = SimpleNamespace(
        is_model=lambda name: name.startswith("tiny"),
        list_models=lambda: ["tiny"],
        create_model=create_model,
        list_pretrained=lambda pattern: ["tiny.tag", "tiny.none"],
        get_pretrained_cfg=get_pretrained_cfg,
    )
    monkeypatch.setitem(sys.modules, "timm", fake)
    # It comes with timm.
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", SimpleNamespace(HF_HUB_OFFLINE=True))
    five, two = rgb(here / "x.npz", 5), rgb(here / "y.npz", 2)
    value = evaluated(robust, "timm:tiny.tag", "--data", five, "--attack", "clean")
    assert (value["network"]["mean"], value["network"]["std"]) == ([0.5] * 3, [0.25] * 3)
    torch.save(Timm(2).state_dict(), "w.pt")
    value = evaluated(robust, "timm:tiny", "--weights", "w.pt", "--data", two, "--attack", "clean", *NONE)
    assert "as --mean and --std say" in value["notes"][-1]
    robust("eval", "timm:tny", "--data", five).require(2, "timm:tny: timm has no such network; did you mean 'tiny'?")
    words = ("--weights", "w.pt", "--data", two, "--attack", "clean")
    robust("eval", "timm:tny", *words).require(2, "architecture.model: timm has no network 'tny'; did you mean 'tiny'?")
    said = robust("eval", "timm:tiny.tog", "--data", five, "--attack", "clean")
    said.require(2, "timm:tiny.tog: timm has no weights 'tog' of tiny; did you mean 'tag'?")
    robust("eval", "timm:tiny.none", "--data", five, "--attack", "clean").require(2, "no pretrained weights exist")
    robust("eval", "timm:tiny", "--weights", "A1", "--data", five).require(2, "--weights: A1: no such file")


def test_without_timm_the_extra_is_named(robust: Robust, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    robust("eval", "timm:resnet18", "--data", "digits").require(2, "pip install timm")


# Mistakes of the user


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        ((), ("no model given", "--model file.py:function")),
        (("w.pt", *DIGITS), ("not written by `robust train`", "need --architecture NAME")),
        (("gone.pt", *SMALL, *DIGITS), ("gone.pt: no such file",)),
        (("wide_resnet", *DIGITS), ("wide_resnet is an architecture", "eval WEIGHTS --architecture wide_resnet")),
        (("mine.py", *SMALL, *DIGITS), ("mine.py: the file is a text that begins with",)),
        (("w.pt", *SMALL, *DIGITS), ("--norm and --eps: w.pt has no threat model", "write --norm linf --eps 8/255")),
        (("w.pt", *SMALL, *DIGITS, "--eps", "0.1"), ("--norm: w.pt has no threat model",)),
        (("w.pt", *SMALL, *DIGITS, "--norm", "l2", *FEW), ("--eps: w.pt has no threat model",)),
        (("w.pt", *SMALL, *DIGITS, "--norm", "linf", "--eps", "8"), ("write 8/255",)),
        (("w.pt", *SMALL, *THREAT), ("--data: no images given",)),
        (("w.pt", *SMALL, *THREAT, "--data", "digit"), ("is not a data set, folder or .npz file; did you mean",)),
        (("w.pt", *SMALL, *THREAT, "--data", "."), ("data.size: missing for a folder of images",)),
        (("w.pt", *SMALL, *THREAT, "--data", "four.npz"), ("the file knows 10 classes, and the data have 4",)),
        (("w.pt", *SMALL, *THREAT, *DIGITS, "threat.eps=1"), ("override 'threat.eps=1': w.pt has no spec",)),
        (("w.pt", "--architecture", "small_cn", *DIGITS), ("did you mean 'small_cnn'?",)),
        (("w.pt", *SMALL, "architecture.widht=3", *DIGITS), ("architecture.widht: unknown", "'width'?")),
        (("w.pt", "--architecture", "small_cnn", *THREAT, *DIGITS), ("[4, 1, 4, 4], expected [16, 1, 4, 4]",)),
        (("w.pt", "--architecture", "resnet18", *THREAT, *DIGITS), ("missing: conv1.weight", "8 not in the")),
        (("w.pt", *SMALL, *BUILD), ("'w.pt' and --model both name", "go to --weights")),
        (("--architecture", "small_cnn", *BUILD), ("--architecture and --model both name",)),
        (("w.pt", "--weights", "w.pt"), ("--weights needs --model",)),
        (("w.pt", "--weights-key", "ema"), ("--weights-key needs --architecture",)),
        ((*BUILD, *DIGITS, "--weights-key", "ema"), ("--weights-key needs --architecture",)),
        (
            ("torchvision:resnet18", "--weights", "DEFAULT", "--weights-key", "ema"),
            ("DEFAULT is not a file of weights",),
        ),
        (("--model", "mine.py:biuld", *DIGITS), ("mine.py has no 'biuld'; did you mean 'build'?",)),
        (("--model", "mine.py", *DIGITS), ("write path/file.py:function",)),
        (("--model", "gone.py:build", *DIGITS), ("gone.py: no such file",)),
        (("--model", "no_such_module:build", *DIGITS), ("No module named 'no_such_module'",)),
        (("--model", "mine.py:number", *DIGITS), ("mine.py:number is int; expected a function",)),
        (("--model", "mine.py:needs", *THREAT, *DIGITS), ("mine.py:needs: needs width",)),
        (("--model", "mine.py:fails", *THREAT, *DIGITS), ("NameError: name 'undefined'", "mine.py:27")),
        (("--model", "mine.py:seven", *THREAT, *DIGITS), ("gives 7 classes for 2 images; the data have 10",)),
        ((*BUILD, *THREAT, "--data", "rgb.npz"), ("does not take 3x8x8 images of 10 classes",)),
        ((*BUILD, "--weights", "other.pt", *THREAT, *DIGITS), ("not fit mine.py:build",)),
        ((*BUILD, "architecture.width=3", *DIGITS), ("has its own, which cannot be",)),
        ((*BUILD, "--mean", "0", *DIGITS), ("--mean and --std need each other",)),
        ((*BUILD, "--mean=0", "--std=0", *DIGITS), ("expected numbers above 0",)),
        ((*BUILD, "--mean=125.3", "--std=63", *DIGITS), ("--mean: 125.3", "by 255")),
        ((*BUILD, "--mean=a", "--std=1", *DIGITS), ("--mean: 'a' is not a number",)),
        (
            (*BUILD, "--mean=0,0", "--std=1", *THREAT, *DIGITS),
            ("normalization with 2 numbers; expected one for each channel of the images, which is 1, or one for all",),
        ),
        (
            ("w.pt", *SMALL, "architecture.normalize=none", "--mean=0", "--std=1", *DIGITS),
            ("--mean and architecture.normalize=none contradict",),
        ),
        (
            ("w.pt", *SMALL, "architecture.normalize=per_image", *DIGITS),
            ("architecture.normalize=per_image: weights of a file are normalized per channel",),
        ),
        (("torchvision:resnet18", "--data", "rgb.npz"), ("its weights would be random; --weights names a file",)),
        (("torchvision:resnet81", "--weights", "DEFAULT"), ("no such classifier; did you mean 'resnet18'?",)),
        (("torchvision:resnet81", "--data", "rgb.npz"), ("no such classifier; did you mean 'resnet18'?",)),
        (("torchvision:resnet18", "--weights", "V1"), ("neither a file nor published weights", "IMAGENET1K_V1")),
        (("torchvision:resnet18", "--architecture", "resnet18"), ("has its own architecture; remove the option",)),
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated_ends_with_2(
    robust: Robust, here: Path, body: dict[str, Any], words: tuple[object, ...], texts: tuple[str, ...]
) -> None:
    torch.save(body, "w.pt")
    torch.save({"weight": torch.zeros(2)}, "other.pt")
    (here / "mine.py").write_text(CODE)
    x = np.zeros((20, 8, 8), dtype=np.uint8)
    np.savez("four.npz", x_test=x, y_test=np.arange(20) % 4, classes=np.array(["a", "b", "c", "d"]))
    np.savez("rgb.npz", x_test=np.stack([x] * 3, -1), y_test=np.arange(20) % 10)
    robust("eval", *words, "-q").require(2, *texts)


def test_a_checkpoint_of_a_run_needs_no_further_options(robust: Robust, trained: RunFolder) -> None:
    robust("eval", trained.best, *SMALL, *DIGITS).require(2, "names its own network")
    robust("eval", trained.best, "--mean", 0, "--std", 1).require(2, "has its own normalization; remove both")


def test_numbers_of_other_code_are_not_read_again(robust: Robust, here: Path) -> None:
    """The same weights at a path outside the store, with changed code."""
    code = here / "elsewhere" / "mine.py"
    code.parent.mkdir()
    for text in (CODE, CODE.replace("self.layers(x)", "self.layers(x).flip(1)")):
        code.write_text(
            text.replace("nn.Module):", "nn.Module):\n    torch.manual_seed(0)").replace(
                "from", "import torch\nfrom", 1
            )
        )
        robust("eval", "--model", f"{code}:build", *DIGITS, *THREAT, *FEW, "--quiet").require(0)
    assert len(list((here / "evals").glob("mine.py:build-*"))) == 2
    assert [path.name for path in code.parent.iterdir() if path.name != "__pycache__"] == ["mine.py"]
