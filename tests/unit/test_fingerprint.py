"""The fingerprint contains everything the results of an evaluation depend on."""

import importlib.util
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from test_imports import IMPORTS, PACKAGE
from torch import Tensor, nn

from robustcli.contracts.networks import conv_net, images, labels
from robustcli.evaluation import fingerprint as fingerprint_module
from robustcli.evaluation.fingerprint import _DECIDING, code_digest, evaluator_text, fingerprint, in_present_names
from robustcli.models.digest import code_of, network_digest, weights_digest
from robustcli.registry.catalog import catalog
from robustcli.threat.threat import ThreatModel

# They word messages, sum up, cut batches and shards, keep memory, read settings or files; what is in a file that an
# evaluator reads counts by itself, and the code of a network with the network.
_NOT_DECIDING = {
    "architectures/__init__.py",
    "architectures/branches.py",
    "architectures/channel_gates.py",
    "architectures/running_statistics.py",
    "errors.py",
    "evaluation/adaptive_batches.py",
    "evaluation/noted_warnings.py",
    "evaluation/journal.py",
    "evaluation/postflight.py",
    "evaluation/preflight.py",
    "evaluation/progress.py",
    "evaluation/two_phase.py",
    "models/build.py",
    "models/digest.py",
    "models/find.py",
    "models/model.py",
    "models/schemes/__init__.py",
    "registry/registry.py",
    "registry/types.py",
    "runtime/allocator.py",
    "runtime/out_of_memory.py",
    "runtime/ranks.py",
    "store/evaluations.py",
    "store/results.py",
    "store/checkpoint.py",
}
NETWORK = """
from torch import nn
class Net(nn.Linear):
    def forward(self, x):
        return super().forward(x.flatten(1))
"""


def file_of(name: str) -> str:
    """The file, below the package, that an imported name such as "robustcli.threat.noise.derive" comes from."""
    parts = name.split(".")[1:]
    while parts:
        for path in (PACKAGE.joinpath(*parts).with_suffix(".py"), PACKAGE.joinpath(*parts, "__init__.py")):
            if path.exists():
                return path.relative_to(PACKAGE).as_posix()
        parts.pop()
    return "__init__.py"


def test_the_code_of_an_evaluation_is_all_in_its_fingerprint() -> None:
    covered = {path for pattern in _DECIDING for path in PACKAGE.glob(pattern)}
    reached = {file_of(name) for path in covered for _, name in IMPORTS[path]}
    assert reached - {path.relative_to(PACKAGE).as_posix() for path in covered} == _NOT_DECIDING


def mark(**changed: Any) -> dict[str, str]:
    """The fingerprint of one evaluation with some changes."""
    given: dict[str, Any] = {
        "model": conv_net(),
        "x": images(4),
        "y": labels(4),
        "threat": ThreatModel("linf", Fraction(8, 255)),
        "evaluator": "attacked",
        "parameters": {"attack": {"name": "pgd", "steps": 10}, "batch_size": 250},
        "seed": 0,
    }
    return fingerprint(**{**given, **changed})


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"model": conv_net(seed=1)}, "weights"),
        ({"x": images(4, seed=7)}, "images"),
        ({"y": labels(4, seed=7)}, "images"),
        ({"threat": ThreatModel("linf", Fraction(7, 255))}, "threat"),
        ({"threat": ThreatModel("l2", Fraction(8, 255))}, "threat"),
        ({"evaluator": "clean"}, "evaluator"),
        ({"parameters": {"attack": {"name": "pgd", "steps": 11}, "batch_size": 250}}, "evaluator"),
        ({"seed": 1}, "seed"),
    ],
)
def test_whatever_findings_depend_on_counts_and_is_named(changed: dict[str, Any], name: str) -> None:
    before, after = mark(), mark(**changed)
    assert before == mark()
    assert {part for part in before if before[part] != after[part]} == {name}


def test_the_size_of_batches_does_not_count() -> None:
    assert mark(parameters={"attack": {"name": "pgd", "steps": 10, "batch_size": 3}, "batch_size": 7}) == mark()


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


def test_code_of_an_attack_of_another_package_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, ours = tmp_path / "theirs.py", code_digest.__wrapped__()
    path.write_text("EPS = 1\n")
    theirs = replace(catalog("attacks")["pgd"], path=path)
    monkeypatch.setattr(fingerprint_module, "catalog", lambda family: {**catalog(family), "theirs": theirs})
    first = code_digest.__wrapped__()
    path.write_text("EPS = 2\n")
    assert len({ours, first, code_digest.__wrapped__()}) == 3


PLAIN = """
def f(x):
    return "# 1" + x

"""
COMMENTED = '''"""A module."""
# A comment.
def f(x):  # Another one.
    """Return x,

    # with a docstring.
    """

    return "# 1" + x
'''


def test_only_code_counts(tmp_path: Path) -> None:
    texts = []
    for number, text in enumerate(
        [PLAIN, COMMENTED, PLAIN.replace("# 1", "# 2"), PLAIN.replace("    return", "    # \n  return")]
    ):
        path = tmp_path / f"{number}.py"
        path.write_text(text, encoding="utf-8")
        texts.append(code_of(path))
    plain, commented, *others = texts
    assert plain == commented
    assert plain not in others


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
    """Frozen weights are constants of the code and not part of the state."""
    digests = []
    for scale in (1, 1, 2):
        inner = nn.Linear(30, 20)
        nn.init.constant_(inner.weight, scale)
        nn.init.zeros_(inner.bias)
        frozen = torch.jit.freeze(torch.jit.script(nn.Sequential(inner).eval()))  # type: ignore[no-untyped-call]
        frozen.save(tmp_path / "net.pt")
        digests.append(weights_digest(nn.Sequential(torch.jit.load(tmp_path / "net.pt"))))  # type: ignore[no-untyped-call]
    assert digests[0] == digests[1] != digests[2]


def test_evaluators_are_printed_with_their_present_names() -> None:
    text = evaluator_text("worst_case", {"members": [{"name": "attack", "attack": {"name": "pgd"}}]})
    assert '"name": "attacked"' in text
    shown = in_present_names(text)
    assert '"name": "attack"' in shown
    assert "attacked" not in shown
    assert in_present_names("attacked {}") == "attack {}"
    for other in ("linf 0.05", "0", "a b", "", "None"):
        assert in_present_names(other) == other
