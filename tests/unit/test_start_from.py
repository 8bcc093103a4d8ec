"""Training that starts from the weights of another run: which are taken, and what is refused."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from robustcli.architectures import ImageShape
from robustcli.cli.progress import Screen
from robustcli.contracts.networks import drawn_from
from robustcli.errors import RobustCliError
from robustcli.models.build import build_network
from robustcli.models.start import start_from as start
from robustcli.registry.registry import MemberSpec
from robustcli.specs.settings import ArchitectureOptions
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.checkpoint import Checkpoint
from robustcli.workflows.train import run_experiment

START = """
name: NAME
data: {name: digits, train_size: 64}
architecture: {name: xcit, width: 8, heads: 2, depth: 1, normalize: NORMALIZE}
threat: {norm: linf, eps: 0.1}
defense: natural
train: {epochs: 1, lr: LR, device: cpu, START}
evaluate: {}
"""


def trained(folder: Path, name: str, start: str = "", normalize: str = "dataset") -> Path:
    """The first checkpoint of a run, before any update."""
    text = START.replace("NAME", name, 1).replace("START", start).replace("NORMALIZE", normalize)
    spec = ExperimentSpec.parse(text.replace("LR", "1e-12" if start else "0.1"), name)
    return run_experiment(spec, folder, Screen(is_quiet=True)).last


def test_a_run_starts_from_the_weights_of_another(tmp_path: Path) -> None:
    first = trained(tmp_path, "first")
    second = trained(tmp_path, "second", f"start_from: {first}", "none")
    weights, others = (Checkpoint.read(path).weights for path in (first, second))
    for name, _ in build("xcit").named_parameters():
        assert torch.allclose(others[name], weights[name], rtol=0, atol=1e-6), name
    assert others["normalize.std"] == 1 != weights["normalize.std"], "the normalization is that of its own spec"
    alone = Checkpoint.read(trained(tmp_path, "alone", "weight_decay: 0")).weights
    assert not torch.allclose(alone["body.head.weight"], weights["body.head.weight"], atol=1e-3)


def member(name: str, **settings: Any) -> MemberSpec:
    return MemberSpec("architectures", name, settings, ArchitectureOptions())


def build(name: str, classes: int = 10, **settings: Any) -> nn.Module:
    chosen = member(name, **{"width": 8, "heads": 2, "depth": 1, **settings})
    with drawn_from(classes):
        return build_network(chosen, ImageShape(1, 8, 8, classes), (0.5,), (0.25,))


def start_from(network: nn.Module, path: Path) -> None:
    """From a checkpoint, for which architecture and shape of the network do not matter."""
    start(network, str(path), member("xcit"), ImageShape(1, 8, 8, 10))


def saved_network(folder: Path) -> Path:
    path = folder / "other.pt"
    Checkpoint(spec="", weights=build("xcit").state_dict()).write(path)
    return path


def test_a_classifier_of_other_classes_starts_anew(tmp_path: Path) -> None:
    network, fresh = build("xcit", classes=7), build("xcit", classes=7).state_dict()
    start_from(network, saved_network(tmp_path))
    weights = build("xcit").state_dict()
    for name, value in network.state_dict().items():
        assert torch.equal(value, fresh[name] if name.startswith("body.head.") else weights[name]), name


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    path = saved_network(tmp_path)
    for other in (build("xcit", depth=2), build("xcit", width=12), build("vit")):
        before = deepcopy(other.state_dict())
        with pytest.raises(
            RobustCliError, match=r"train\.start_from: .*other\.pt: not of the architecture of this spec"
        ):
            start_from(other, path)
        assert all(torch.equal(before[name], value) for name, value in other.state_dict().items())
    with pytest.raises(RobustCliError, match="no such file"):
        start_from(build("xcit"), tmp_path / "gone.pt")


def test_a_start_with_divisors_for_another_image_size_is_refused(tmp_path: Path) -> None:
    chosen = member("resnet18", width=2, norm="conv_running")
    one, other = (build_network(chosen, ImageShape(1, side, side, 10), (0.5,), (0.25,)) for side in (8, 16))
    Checkpoint(spec="", weights=one.state_dict()).write(tmp_path / "one.pt")
    with pytest.raises(RobustCliError, match=r"one\.pt: norm conv_running keeps divisors for images of one size"):
        start_from(other, tmp_path / "one.pt")


SMALL = member("small_cnn", width=4, hidden=8)


def small(classes: int) -> nn.Module:
    with drawn_from(classes):
        return build_network(SMALL, ImageShape(3, 16, 16, classes), (0.5,) * 3, (0.25,) * 3)


def test_weights_of_another_program_are_a_start(tmp_path: Path) -> None:
    theirs = {f"module.{name}": value for name, value in small(10).body.state_dict().items()}  # type: ignore[operator,union-attr]
    torch.save({"state_dict": theirs, "epoch": 3}, tmp_path / "theirs.pt")
    network, fresh = small(10), small(7)
    for parameter in network.parameters():
        parameter.data.zero_()
    start(network, str(tmp_path / "theirs.pt"), SMALL, ImageShape(3, 16, 16, 10))
    for name, value in small(10).state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name
    head = [name for name, value in fresh.state_dict().items() if value.shape[:1] == (7,)]
    start(fresh, str(tmp_path / "theirs.pt"), SMALL, ImageShape(3, 16, 16, 7))
    for name, value in small(10).state_dict().items():
        assert torch.equal(fresh.state_dict()[name], small(7).state_dict()[name] if name in head else value), name
    with pytest.raises(RobustCliError, match=r"train\.start_from: .*theirs\.pt: does not fit xcit"):
        start(
            build("xcit"),
            str(tmp_path / "theirs.pt"),
            member("xcit", width=8, heads=2, depth=1),
            ImageShape(3, 8, 8, 10),
        )


def test_a_file_with_several_networks_is_no_start(tmp_path: Path) -> None:
    """The option of `robust eval` that chooses one is not there in a spec."""
    sets = {name: build("xcit", classes).body.state_dict() for name, classes in (("model", 10), ("ema", 10))}
    sets["ema"] = {name: value + 1 if value.is_floating_point() else value for name, value in sets["ema"].items()}
    torch.save(sets, tmp_path / "two.pt")
    torch.save({f"{name}.{key}": one for name, each in sets.items() for key, one in each.items()}, tmp_path / "flat.pt")
    chosen = member("xcit", width=8, heads=2, depth=1)
    for file in ("two.pt", "flat.pt"):
        with pytest.raises(RobustCliError, match=r"several sets of weights .*write one of them into a file") as caught:
            start(build("xcit"), str(tmp_path / file), chosen, ImageShape(1, 8, 8, 10))
        assert "--weights-key" not in str(caught.value)


def test_a_model_by_name_is_a_start(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")

    real = timm.create_model
    # The published weights would have to be downloaded.
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **how: real(name, pretrained=False, **how))
    chosen = member("timm", model="mobilenetv3_small_050", stem="as_it_is")
    shape = ImageShape(3, 64, 64, 10)
    network = build_network(chosen, shape, (0.5,) * 3, (0.25,) * 3)
    before = deepcopy(network.state_dict())
    start(network, "timm:mobilenetv3_small_050", chosen, shape)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert "body.conv_stem.weight" in changed
    assert not any(name.startswith(("body.classifier", "normalize")) for name in changed)
    with pytest.raises(RobustCliError, match=r"train\.start_from: timm:mobilenetv3_smal: timm has no such network"):
        start(network, "timm:mobilenetv3_smal", chosen, shape)


def test_a_run_may_be_named_by_its_folder(tmp_path: Path) -> None:
    first = trained(tmp_path, "first")
    second = trained(tmp_path, "second", f"start_from: {first.parents[1]}")
    weights, others = (Checkpoint.read(path).weights for path in (first, second))
    assert torch.allclose(others["body.head.weight"], weights["body.head.weight"], rtol=0, atol=1e-6)


def test_a_convnext_of_torchvision_is_a_start(tmp_path: Path) -> None:
    """The same function as theirs, with another classifier; a stem of other convolutions is refused."""
    blocks = [CNBlockConfig(8, 16, 2), CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 1)]
    theirs = ConvNeXt(blocks, num_classes=10, layer_scale=0.5).eval()
    torch.save({f"module.{name}": value for name, value in theirs.state_dict().items()}, tmp_path / "theirs.pt")
    chosen = member("convnext", depths=(2, 1, 1), widths=(8, 16, 32), patch=4)
    shape = ImageShape(3, 32, 32, 10)
    network = build_network(chosen, shape, (0.0,) * 3, (1.0,) * 3).eval()
    start(network, str(tmp_path / "theirs.pt"), chosen, shape)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(x), theirs(x), rtol=1e-4, atol=1e-5)
    other = build_network(chosen, ImageShape(3, 32, 32, 7), (0.0,) * 3, (1.0,) * 3)
    start(other, str(tmp_path / "theirs.pt"), chosen, ImageShape(3, 32, 32, 7))
    assert torch.equal(other.state_dict()["body.stem.0.weight"], theirs.state_dict()["features.0.0.weight"])
    stem = member("convnext", depths=(2, 1, 1), widths=(8, 16, 32), patch=4, stem="conv2")
    with pytest.raises(RobustCliError, match=r"does not fit convnext.*architecture\.patch=4"):
        start(build_network(stem, shape, (0.0,) * 3, (1.0,) * 3), str(tmp_path / "theirs.pt"), stem, shape)
