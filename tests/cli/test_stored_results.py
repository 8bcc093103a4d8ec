"""A stored result is reused only for an unchanged network, and with a message."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from shell import Robust

pytestmark = pytest.mark.slow

WORDS = ("--model", "net.py:build", "--data", "digits", "--norm", "linf", "--eps", "0.05", "--mean", 0, "--std", 1)
FEW = ("--attack", "pgd", "--steps", 2, "--examples", 20)
NET = """\
import os
import torch
from torch import nn
from helper import Base, prepare

class Net(Base):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        self.scale = 1.0

    def forward(self, x):
        x = prepare(self.change(x))
        if os.environ.get("MASKED"):
            x = x.detach() + 0 * x
        return self.layers(x) * self.scale

def build():
    net = Net()
    # here
    return net.eval()
"""
HELPER = """\
from torch import nn

def prepare(x):
    return x

class Base(nn.Module):
    def change(self, x):
        return x
"""


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "helper.py").write_text(HELPER)
    yield
    for name in ("helper", "robust_eval_model_net"):
        sys.modules.pop(name, None)


def evaluated(robust: Robust, *words: object) -> tuple[dict[str, Any], bool]:
    """The result, and whether it was stored."""
    for name in ("helper", "robust_eval_model_net"):
        sys.modules.pop(name, None)
    said = robust("eval", *WORDS, *FEW, *words, "--json", "-q").require(0)
    return json.loads(said.out)["evaluations"]["pgd"], "stored result of" in said.err


def edit(name: str, old: str, new: str) -> None:
    path = Path(name)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_an_equal_command_reads_the_stored_result_with_a_message(robust: Robust) -> None:
    first, was_stored = evaluated(robust)
    assert not was_stored
    again, was_stored = evaluated(robust)
    assert was_stored
    assert again == first
    said = robust("eval", *WORDS, *FEW, "-q")
    assert "pgd: stored result of 2" in said.err
    assert "evals/net.py:build-" in said.err


def test_a_stored_result_of_another_file_says_so(robust: Robust) -> None:
    weights = {"layers.1.weight": torch.eye(10, 64), "layers.1.bias": torch.zeros(10)}
    torch.save(weights, "plain.pt")
    torch.save({"state_dict": weights}, "nested.pt")
    assert not evaluated(robust, "--weights", "plain.pt")[1]
    said = robust("eval", *WORDS, *FEW, "-q", "--weights", "nested.pt").require(0)
    assert "are about plain.pt, which has the same weights as nested.pt" in said.err
    assert "note: nested.pt: weights are those under 'state_dict'" in said.err
    assert "same weights" not in robust("eval", *WORDS, *FEW, "-q", "--weights", "plain.pt").err


def test_fresh_computes_again(robust: Robust) -> None:
    first, _ = evaluated(robust)
    again, was_stored = evaluated(robust, "--fresh")
    assert not was_stored
    assert again["survivors"] == first["survivors"]
    assert evaluated(robust)[1]


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("helper.py", "def prepare(x):\n    return x", "def prepare(x):\n    return 1 - x"),
        ("helper.py", "    def change(self, x):\n        return x", "    def change(self, x):\n        return 1 - x"),
        ("net.py", "    # here", "    net.register_forward_pre_hook(lambda module, args: (1 - args[0],))"),
        ("net.py", "    # here", "    net.forward = lambda x: -net.layers(x)"),
        ("net.py", "    # here", "    net.scale = -1.0"),
        ("net.py", "    # here", "    net.scale = float(os.environ.get('SCALE', '-1'))"),
        ("net.py", "torch.manual_seed(0)", "torch.manual_seed(1)"),
    ],
    ids=["helper", "base class", "pre-hook", "forward", "attribute", "environment", "weights"],
)
def test_a_changed_network_is_evaluated_anew(robust: Robust, name: str, old: str, new: str) -> None:
    evaluated(robust)
    edit(name, old, new)
    assert not evaluated(robust)[1]


def test_a_result_of_a_changed_network_has_nothing_of_the_stored_one(robust: Robust) -> None:
    evaluated(robust)
    edit("net.py", "torch.manual_seed(0)", "torch.manual_seed(1)")
    changed, was_stored = evaluated(robust)
    assert not was_stored
    assert changed == {**evaluated(robust, "--store", "other")[0], "seconds": changed["seconds"]} | {
        "stages": changed["stages"]
    }


def test_what_the_environment_changes_is_noticed(robust: Robust, monkeypatch: pytest.MonkeyPatch) -> None:
    edit("net.py", "    # here", "    Base.change = lambda self, x: x * float(os.environ.get('SCALE', '1'))")
    evaluated(robust)
    monkeypatch.setenv("SCALE", "-1")
    assert not evaluated(robust)[1]
    assert evaluated(robust)[1]
    monkeypatch.delenv("SCALE")
    assert evaluated(robust)[1]


def test_gradients_that_the_environment_masks_are_noticed(robust: Robust, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated(robust)
    monkeypatch.setenv("MASKED", "1")
    assert not evaluated(robust)[1]
