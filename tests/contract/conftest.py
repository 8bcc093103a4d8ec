"""A folder with what members of the registries read: another network, for attacks that see it."""

from pathlib import Path

import pytest
import torch
from small_networks import conv_net, drawn_from, images
from torch import nn

from robustcli import checkpoint
from robustcli.architectures import ImageShape
from robustcli.build import build_network
from robustcli.spec import ExperimentSpec

SPEC = """
name: source
data: {name: digits, val_size: 100}
architecture: {name: small_cnn}
threat: {norm: linf, eps: 0.1}
defense: natural
train: {epochs: 1}
evaluate: {clean: clean}
"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contract")
    spec = ExperimentSpec.parse(SPEC, "source")
    with drawn_from(0):
        network = build_network(spec.architecture, ImageShape(1, 8, 8, 10), (0.0,), (1.0,))
    _imitate(network, conv_net().eval())
    contents = {"spec": SPEC, "shape": [1, 8, 8, 10], "mean": [0.0], "std": [1.0], "weights": network.state_dict()}
    checkpoint.save(folder / "source.pt", contents)
    return folder


def _imitate(network: nn.Module, other: nn.Module) -> None:
    """Train a network until what fools it fools the other one too, which the contracts evaluate."""
    x = images(256, seed=5)
    with torch.no_grad():
        wanted = other(x)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        (network(x) - wanted).square().mean().backward()
        optimizer.step()
    network.eval()


@pytest.fixture(autouse=True)
def in_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
