"""Compiled passes: only for full batches, tried where a failure can be repaired, with the same numbers."""

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from products import products
from small_steps import COUNT, batch, same, train
from torch import Tensor, nn

from robustcli.attacks.crafting import crafting
from robustcli.attacks.gradient import input_gradient
from robustcli.attacks.losses import LOSSES
from robustcli.cli.progress import Screen
from robustcli.contracts.networks import conv_net, images
from robustcli.defenses.min_max import MinMax
from robustcli.defenses.pgd_at import pgd_at
from robustcli.defenses.trades import trades
from robustcli.errors import RobustCliError
from robustcli.optimization.weights.awp import Awp
from robustcli.runtime.compiled import CompiledCalls
from robustcli.specs.settings import TrainSettings
from robustcli.specs.spec import ExperimentSpec
from robustcli.training.model import TrainingModel
from robustcli.workflows.train import run_experiment

CPU, GPU = torch.device("cpu"), torch.device("cuda")
DEVICES = [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)]
SETTINGS = TrainSettings(epochs=1, batch_size=COUNT, compile=True, channels_last=False)
Program = Callable[[nn.Module, Tensor], Tensor]


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts every call of a program; the compiler returns its input."""
    seen: list[int] = []

    def compiled(call: Program, *, dynamic: bool, mode: str | None) -> Program:
        assert not dynamic
        assert mode in (None, "reduce-overhead")

        def program(network: nn.Module, x: Tensor) -> Tensor:
            seen.append(len(x))
            return call(network, x)

        return program

    monkeypatch.setattr(torch, "compile", compiled)
    return seen


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: out_of_memory)


def break_compiler(monkeypatch: pytest.MonkeyPatch, *, in_backward: bool = False) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no compiler\nand a long story")

    def broken(call: Program, **_: Any) -> Program:
        def program(network: nn.Module, x: Tensor) -> Tensor:
            logits = call(network, x)
            if in_backward:
                logits.register_hook(fail)  # type: ignore[no-untyped-call]
            else:
                fail()
            return logits

        return program

    monkeypatch.setattr(torch, "compile", broken)


METHODS = [
    pgd_at(steps=2),
    trades(steps=2),
    replace(trades(steps=2), weights=Awp()),
    pgd_at(steps=2, attack_bn="train"),
]


@pytest.mark.parametrize("defense", METHODS, ids=["pgd_at", "trades", "trades with awp", "attack in train mode"])
def test_training_is_the_same(defense: MinMax, rows: list[int]) -> None:
    """Trying the programs does not change statistics, gradients or random states."""
    plain, compiled = conv_net(dropout=0.3), conv_net(dropout=0.3)
    expected = train(defense, TrainingModel(plain, replace(SETTINGS, compile=False), CPU))
    found = train(defense, TrainingModel(compiled, SETTINGS, CPU))
    assert same(expected, found)
    assert rows


def test_each_kind_of_pass_is_tried_once(rows: list[int]) -> None:
    model = TrainingModel(conv_net(), SETTINGS, CPU)
    train(pgd_at(steps=2), model, updates=2)
    # Two kinds: at held weights in eval mode, and at trained ones. Two attack passes and one other per update.
    assert len(rows) == 2 + 2 * 3


def test_only_whole_batches_are_compiled(rows: list[int]) -> None:
    calls = CompiledCalls(4, CPU)
    network = conv_net().eval()
    for count in (4, 3, 8, 1, 4):
        x = images(count)
        assert torch.equal(calls(network, x), network(x))
    assert rows == [4, 4, 8, 8, 4]


def test_a_graph_is_captured_and_replayed_where_a_failure_can_be_repaired(rows: list[int]) -> None:
    calls, network, x = CompiledCalls(4, GPU), conv_net().eval(), images(4)
    assert torch.equal(calls(network, x), network(x))
    # Compiled, captured, replayed, and then the call.
    assert rows == [4] * 4


@pytest.mark.usefixtures("broken")
def test_programs_that_do_not_fit_into_memory_are_given_up() -> None:
    network, x = conv_net().eval(), images(4)
    with pytest.warns(UserWarning, match="out of memory"):
        found = CompiledCalls(4, CPU)(network, x)
    assert torch.equal(found, network(x))


def test_copies_share_programs_and_call_their_own_networks(rows: list[int]) -> None:
    model = TrainingModel(conv_net(), SETTINGS, CPU).eval()
    x, _ = batch()
    before = model(x)
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.data.zero_()
    assert other(x).abs().max() == 0
    assert torch.equal(model(x), before)
    assert rows == [COUNT] * 4, "the copy tried again what had been tried"


@pytest.mark.parametrize("in_backward", [False, True])
def test_a_failing_compiler_is_reported_once(in_backward: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = train(pgd_at(steps=2), TrainingModel(conv_net(), replace(SETTINGS, compile=False), CPU))
    break_compiler(monkeypatch, in_backward=in_backward)
    told: list[str] = []
    model = TrainingModel(conv_net(), SETTINGS, CPU, told.append)
    with pytest.warns(UserWarning, match="without torch.compile") as warned:
        found = train(pgd_at(steps=2), model)
    assert same(expected, found)
    assert len(warned) == 1
    assert told == ["training continues without torch.compile, which failed (RuntimeError: no compiler)"]


SPEC = """\
name: tiny
data: {name: digits, val_size: 20, train_size: 40}
architecture: {name: small_cnn, width: 2, hidden: 4}
threat: {norm: linf, eps: 0.05}
defense: {name: pgd_at, steps: 2}
train: {epochs: 1, batch_size: 16, lr: 1e-2, compile: true, check_examples: 20, device: cpu}
evaluate: {}
"""


def test_the_record_of_a_run_states_a_failed_compilation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_compiler(monkeypatch)
    spec = ExperimentSpec.parse(SPEC, "tiny")
    with pytest.warns(UserWarning, match="without torch.compile"):
        folder = run_experiment(spec, tmp_path, Screen(is_quiet=True))
    (session,) = json.loads(folder.provenance.read_text())["sessions"]
    assert "RuntimeError: no compiler" in session["not_compiled"]
    assert session["channels_last"] is False


def test_a_batch_that_is_never_full_is_refused(tmp_path: Path) -> None:
    spec = ExperimentSpec.parse(SPEC.replace("batch_size: 16", "batch_size: 64"), "tiny")
    with pytest.raises(RobustCliError, match=r"train\.compile: .* 40 training images .* one of 64"):
        run_experiment(spec, tmp_path, Screen(is_quiet=True))


def on_device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device(name)


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double().cpu() - exact).norm() / exact.norm())


def wrong_signs(found: Tensor, exact: Tensor) -> float:
    """Share of the values that have another sign or vanish."""
    return float((found.sign().cpu() != exact.sign()).double().mean())


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize(("mode", "precision"), products(["eval", "train"], ["fp32", "bf16"], strength=1))
@pytest.mark.parametrize("device", DEVICES)
def test_real_programs_are_as_exact_as_the_network(device: str, mode: Any, precision: Any) -> None:
    """The gradients of images and weights, against double precision: a program may round elsewhere, but not worse.

    Which bf16 values change sign or cancel to 0 depends on the processor's order of additions.
    """
    where, network = on_device(device), conv_net()
    # Few updates, since the gradients of a very confident network vanish in any precision.
    train(pgd_at(steps=2), network, updates=5, lr=0.02)
    x, y = batch()

    def gradients(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        with crafting(model, mode):
            to_images, _, _ = input_gradient(model, x, LOSSES["ce"], y)
        F.cross_entropy(model.train()(x), y).backward()  # type: ignore[no-untyped-call]
        to_weights = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        return to_images, torch.cat([weight.flatten() for weight in to_weights])

    settings = TrainSettings(epochs=1, batch_size=COUNT, precision=precision)
    plain, compiled = (
        gradients(
            TrainingModel(copy.deepcopy(network).to(where), replace(settings, compile=is_compiled), where),
            x.to(where),
            y.to(where),
        )
        for is_compiled in (False, True)
    )
    exact = gradients(copy.deepcopy(network).double(), x.double(), y)
    for found, usual, truth in zip(compiled, plain, exact, strict=True):
        # Single precision is exact but for the order of additions, which may double an error of 1e-7.
        assert error(found, truth) <= 1.1 * error(usual, truth) + 1e-6
        # As many by chance as 1 in 100: those next to 0, on which the two need not agree.
        assert wrong_signs(found, truth) <= wrong_signs(usual, truth) + 0.01


@pytest.mark.parametrize("defense", METHODS, ids=["pgd_at", "trades", "trades with awp", "attack in train mode"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_real_programs_train_the_same_weights(device: str, defense: MinMax) -> None:
    """Also where a replayed graph overwrites what the one before it returned."""
    where, start = on_device(device), conv_net()
    trained = []
    for is_compiled in (False, True):
        network = copy.deepcopy(start).to(where)
        model = TrainingModel(network, replace(SETTINGS, compile=is_compiled), where)
        train(defense, model, updates=4)
        trained.append(torch.cat([parameter.detach().flatten().cpu() for parameter in network.parameters()]))
    begun = torch.cat([parameter.detach().flatten() for parameter in start.parameters()])
    plain, compiled = (weights - begun for weights in trained)
    assert F.cosine_similarity(plain, compiled, dim=0) > 0.999
