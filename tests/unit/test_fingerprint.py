"""What an evaluation's findings depend on is in its fingerprint."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from test_imports import PACKAGE, imports_of, layer, module_of
from torch import Tensor, nn

from robustcli.evaluation.fingerprint import _DECIDING
from robustcli.models.digest import network_digest, weights_digest

# They word messages, sum up, cut batches, read settings or files; what is in a file that an evaluator reads counts by
# itself, and the code of a network with the network.
_NOT_DECIDING = {
    "architectures",
    "build",
    "checkpoint",
    "errors",
    "evaluation.portions",
    "evaluation.postflight",
    "evaluation.preflight",
    "evaluation.statistics",
    "fields",
    "registry",
}
NETWORK = """
from torch import nn
class Net(nn.Linear):
    def forward(self, x):
        return super().forward(x.flatten(1))
"""


def test_the_code_of_an_evaluation_is_all_in_its_fingerprint() -> None:
    covered = {path for pattern in _DECIDING for path in PACKAGE.glob(pattern)}
    reached = {layer(name) for path in covered for _, name in imports_of(path)}
    assert reached - {layer(module_of(path)) for path in covered} == _NOT_DECIDING


def built(path: Path, code: str) -> nn.Module:
    path.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("network_of_a_test", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    network: nn.Module = module.Net(4, 2)
    return network


def test_code_of_a_network_counts(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    first, again = (network_digest(nn.Sequential(built(path, NETWORK))) for _ in range(2))
    assert first == again != network_digest(nn.Sequential(built(path, NETWORK.replace("(1)", "(1).abs()"))))


class Scripted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


class Mirrored(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).flip(1)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_code_of_torchscript_counts(tmp_path: Path) -> None:
    digests = []
    for kind in (Scripted, Scripted, Mirrored):
        torch.jit.script(nn.Sequential(kind())).save(tmp_path / "net.pt")  # type: ignore[no-untyped-call]
        digests.append(network_digest(torch.jit.load(tmp_path / "net.pt")))  # type: ignore[no-untyped-call]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weights_of_frozen_torchscript_count(tmp_path: Path) -> None:
    """They are constants of its code, and in no state."""
    digests = []
    for scale in (1, 1, 2):
        inner = nn.Linear(30, 20)
        nn.init.constant_(inner.weight, scale)
        nn.init.zeros_(inner.bias)
        frozen = torch.jit.freeze(torch.jit.script(nn.Sequential(inner).eval()))  # type: ignore[no-untyped-call]
        frozen.save(tmp_path / "net.pt")
        digests.append(weights_digest(nn.Sequential(torch.jit.load(tmp_path / "net.pt"))))  # type: ignore[no-untyped-call]
    assert digests[0] == digests[1] != digests[2]
