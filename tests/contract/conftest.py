"""Files that members read, and `--member NAME`, which runs the contract of one member in seconds."""

from functools import partial
from pathlib import Path

import members
import numpy as np
import pytest
import torch
from small_checkpoint import random_network, save_network
from torch import nn

from robustcli.contracts.networks import conv_net, images
from robustcli.evaluators import quick
from robustcli.evaluators.autoattack import AutoAttack


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--member",
        action="append",
        default=[],
        metavar="NAME",
        help="Test only the members of this name, or FAMILY.NAME; may be repeated. Needs tests/contract as argument.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Select members before the test modules build their parameters."""
    asked: list[str] = config.getoption("member", [])
    known = {spelling for member in members.all_members() for spelling in members.spellings(member)}
    if unknown := set(asked) - known:
        raise pytest.UsageError(f"--member: there is no member {', '.join(sorted(unknown))}")
    members.asked_for.update(asked)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --member, leave out tests of no particular member."""
    if members.asked_for:
        kept = [item for item in items if any(map(members.is_or_names_one_asked_for, _parameters(item)))]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


def _parameters(item: pytest.Item) -> list[object]:
    return [*item.callspec.params.values()] if hasattr(item, "callspec") else []


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contract")
    network = random_network()
    _imitate(network, conv_net().eval())
    save_network(folder / "source.pt", network)
    weights = {name: value for name, value in network.state_dict().items() if name.startswith("body.")}
    torch.save(weights, folder / "weights.pt")
    x = images(7)
    np.savez(folder / "given.npz", x_adv=(x + 1e-3 * torch.where(x > 0.5, -1, 1)).numpy())
    return folder


def _imitate(network: nn.Module, other: nn.Module) -> None:
    """Train a network whose adversarial examples transfer to the one the contracts evaluate."""
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


@pytest.fixture(autouse=True)
def quick_with_one_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample of `quick` is attacked by one attack, since AutoAttack has its own tests and takes seconds."""
    monkeypatch.setattr(quick, "AutoAttack", partial(AutoAttack, attacks=("apgd-ce",)))
