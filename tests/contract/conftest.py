"""A folder with what members of the registries read: another network, for attacks that see it."""

from pathlib import Path

import pytest
import torch
from small_checkpoint import random_network, save_network
from torch import nn

from robustcli.promises.networks import conv_net, images


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contract")
    network = random_network()
    _imitate(network, conv_net().eval())
    save_network(folder / "source.pt", network)
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
