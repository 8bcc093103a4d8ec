"""Training that starts from the weights of another run: which are taken, and what is refused."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from robustcli.architectures import ImageShape
from robustcli.cli.progress import Screen
from robustcli.errors import RobustCliError
from robustcli.models.build import build_network, start_from
from robustcli.promises.networks import drawn_from
from robustcli.registry.registry import MemberSpec
from robustcli.specs.settings import ArchitectureOptions
from robustcli.specs.spec import ExperimentSpec
from robustcli.store import checkpoint
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
    weights, others = (checkpoint.load(path)["weights"] for path in (first, second))
    for name, _ in build("xcit").named_parameters():
        assert torch.allclose(others[name], weights[name], rtol=0, atol=1e-6), name
    assert others["normalize.std"] == 1 != weights["normalize.std"], "the normalisation is that of its own spec"
    alone = checkpoint.load(trained(tmp_path, "alone", "weight_decay: 0"))["weights"]
    assert not torch.allclose(alone["body.head.weight"], weights["body.head.weight"], atol=1e-3)


def build(name: str, classes: int = 10, **settings: Any) -> nn.Module:
    chosen = MemberSpec("architectures", name, {"width": 8, "heads": 2, "depth": 1, **settings}, ArchitectureOptions())
    with drawn_from(classes):
        return build_network(chosen, ImageShape(1, 8, 8, classes), (0.5,), (0.25,))


def saved_network(folder: Path) -> Path:
    path = folder / "other.pt"
    checkpoint.save(path, {"spec": "", "weights": build("xcit").state_dict()})
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


def test_divisors_of_images_of_another_size_are_told_from_another_architecture(tmp_path: Path) -> None:
    settings = {"width": 2, "norm": "conv_running"}
    chosen = MemberSpec("architectures", "resnet18", settings, ArchitectureOptions())
    one, other = (build_network(chosen, ImageShape(1, side, side, 10), (0.5,), (0.25,)) for side in (8, 16))
    checkpoint.save(tmp_path / "one.pt", {"spec": "", "weights": one.state_dict()})
    with pytest.raises(RobustCliError, match=r"one\.pt: norm conv_running keeps divisors for images of one size"):
        start_from(other, tmp_path / "one.pt")
