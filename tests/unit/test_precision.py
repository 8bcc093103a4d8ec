"""The precision of passes changes only speed and rounding, and fp16 loses no gradients."""

import re
import warnings
from collections import Counter
from copy import deepcopy
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from simulated_gpu import simulated_gpu
from small_steps import batch, counted, train
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from robustcli.architectures.branches import branched_of, with_kinds
from robustcli.architectures.channel_gates import with_probes
from robustcli.architectures.features import with_features
from robustcli.attacks.crafting import crafting
from robustcli.attacks.gradient import input_gradient
from robustcli.attacks.losses import LOSSES
from robustcli.attacks.pgd import Pgd
from robustcli.cli.progress import Screen
from robustcli.contracts.networks import branched_net, conv_net, gated_net, images, labels
from robustcli.data.loading import load_data
from robustcli.defenses.pgd_at import pgd_at
from robustcli.defenses.trades import trades
from robustcli.errors import RobustCliError
from robustcli.optimization.weights.awp import Awp
from robustcli.registry.registry import instantiate
from robustcli.runtime import precision
from robustcli.runtime.device import choose_device
from robustcli.runtime.precision import SkippedUpdates, call_scaled, emulation, is_native
from robustcli.specs.settings import TrainSettings
from robustcli.specs.spec import ExperimentSpec, override_text
from robustcli.store.checkpoint import ResumableCheckpoint
from robustcli.store.files import read_json, write_json
from robustcli.store.records import Record
from robustcli.store.runs import folder_of
from robustcli.threat.noise import StreamNoise
from robustcli.threat.threat import ThreatModel
from robustcli.training.choices import chosen_settings
from robustcli.training.model import TrainingModel, is_channels_last
from robustcli.workflows.train import run_experiment

CPU = torch.device("cpu")
FP16 = TrainSettings(epochs=1, precision="fp16", channels_last=False)


def relative(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def gradients_of(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """Of a mean cross-entropy: to the images, then to every weight."""
    x = x.clone().requires_grad_()
    leaves = [x, *model.parameters()]
    return list(torch.autograd.grad(F.cross_entropy(model(x), y), leaves))


@pytest.mark.parametrize("mode", [True, False])
def test_gradients_in_fp16_have_the_size_of_those_in_fp32(mode: bool) -> None:
    x, y = batch()
    exact = gradients_of(conv_net().train(mode), x, y)
    found = gradients_of(TrainingModel(conv_net(), FP16, CPU).train(mode), x, y)
    assert all(relative(one, other) < 0.02 for one, other in zip(found, exact, strict=True))
    assert all(gradient.dtype == torch.float32 for gradient in found)


def _kinds(model: nn.Module, x: Tensor) -> Tensor:
    kinds = with_kinds(model, branched_of(model, 3), x, 1)[1]
    assert kinds is not None
    return kinds


@pytest.mark.parametrize(
    ("new", "read"),
    [
        (conv_net, lambda model, x: with_features(model, x)[1]),
        (gated_net, lambda model, x: torch.cat(with_probes(model, x)[1], 1)),
        (partial(branched_net, 3), _kinds),
    ],
    ids=["features", "probes", "kinds"],
)
def test_what_a_loss_reads_besides_the_logits_has_gradients_of_the_right_size(new: Any, read: Any) -> None:
    found, exact = (
        _gradients_of_read_values(TrainingModel(new(), replace(FP16, precision=name), CPU).eval(), read)  # type: ignore[arg-type]
        for name in ("fp16", "fp32")
    )
    assert len(found) == len(exact) > 1
    assert all(relative(one, other) < 0.05 for one, other in zip(found, exact, strict=True))


def _gradients_of_read_values(model: nn.Module, read: Any) -> list[Tensor]:
    x = images(8).requires_grad_()
    loss = read(model, x).float().square().mean()
    grads = torch.autograd.grad(loss, [x, *model.parameters()], allow_unused=True)
    return [grad for grad in grads if grad is not None and bool(grad.any())]


def test_gradients_that_would_vanish_in_fp16_do_not() -> None:
    model = TrainingModel(conv_net(), FP16, CPU).eval()
    x, y = batch()
    x = x.requires_grad_()
    (found,) = torch.autograd.grad(1e-5 * F.cross_entropy(model(x), y), x)
    (exact,) = torch.autograd.grad(1e-5 * F.cross_entropy(conv_net().eval()(x), y), x)
    assert float(exact.abs().median()) < 1e-7
    assert relative(found, exact) < 0.05


def test_weights_in_fp16_stay_in_fp32_and_passes_are_counted_as_ever() -> None:
    network = conv_net()
    model = TrainingModel(network, FP16, CPU)
    before = [value.clone() for value in network.state_dict().values()]
    with counted(model) as passes:
        train(trades(steps=2), model, updates=1)
    assert (passes.forwards, passes.input, passes.weight) == (5, 2, 2)
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
    assert not any(torch.equal(a, b) for a, b in zip(before, network.state_dict().values(), strict=True))


@pytest.mark.parametrize("weights", [None, Awp(gamma=0.01)])
def test_training_in_fp16_is_that_in_fp32_but_for_rounding(weights: Awp | None) -> None:
    # One step of the attack: with more, one sign that differs moves all that follow.
    defense = pgd_at(steps=1) if weights is None else replace(pgd_at(steps=1), weights=weights)
    start = torch.cat([p.detach().flatten() for p in conv_net().parameters()])
    moved = []
    for name in ("fp32", "fp16"):
        network = conv_net()
        train(defense, TrainingModel(network, replace(FP16, precision=name), CPU), updates=2)  # type: ignore[arg-type]
        moved.append(torch.cat([p.detach().flatten() for p in network.parameters()]) - start)
    assert relative(moved[1], moved[0]) < 0.05


class Bursting(nn.Module):
    """Its gradient overflows in fp16 at the first pixel of every image, and is no number at the second."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        burst = torch.tensor([torch.inf, torch.nan, *[1.0] * (x.shape[1] - 2)])
        x.register_hook(lambda gradient: gradient * burst)
        return x.sum(1, keepdim=True) * self.weight


def test_an_attack_loses_only_the_pixels_that_overflow() -> None:
    x, y = images(3), labels(3, 3)
    model = Bursting()
    with crafting(model, "eval"):
        gradient, _, _ = input_gradient(_Scaled(model), x, LOSSES["ce"], y)
    flat = gradient.flatten(1)
    assert flat.isfinite().all()
    assert (flat[:, 1] == 0).all()
    assert (flat[:, 0].abs() > 10).logical_or(flat[:, 0] == 0).all()


class _Scaled(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return call_scaled(self.network, x)


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_a_gradient_that_overflows_is_taken_away_whole(bad: float) -> None:
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    skipped = SkippedUpdates(optimizer)
    assert skipped.metrics == {}
    before = [parameter.clone() for parameter in layer.parameters()]
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    layer.weight.grad[0, 0] = bad  # type: ignore[index]
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))
    assert float(skipped.metrics["skipped"]) == 1
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert not any(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))
    assert float(skipped.metrics["skipped"]) == 0


SPEC = """\
name: tiny
data: {name: digits, val_size: 20, train_size: 40}
architecture: {name: small_cnn, width: 4, hidden: 8}
threat: {norm: linf, eps: 0.05}
defense: {name: pgd_at, steps: 2}
train: {epochs: 2, batch_size: 20, lr: 1e-2, precision: fp16, grad_clip: 1, check_examples: 20, device: cpu}
evaluate: {}
"""


def test_a_run_in_fp16_records_the_share_of_updates_that_overflowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ExperimentSpec.parse(SPEC, "tiny")
    assert [
        record.measures["skipped"] for record in run_experiment(spec, tmp_path / "a", Screen(is_quiet=True)).records()
    ] == [
        0,
        0,
    ]
    # With this scale all gradients overflow: updates have no gradient, and clipping still works.
    monkeypatch.setattr(precision, "GRADIENT_SCALE", 2.0**30)
    records = run_experiment(spec, tmp_path / "b", Screen(is_quiet=True)).records()
    assert [record.measures["skipped"] for record in records] == [1, 1]


@pytest.mark.parametrize(
    "parts",
    [
        "defense: {name: hat, steps: 1}",
        "defense: {name: pgd_at, steps: 1, weights: {name: awp}}",
        "defense: {name: pgd_at, steps: 1, weights: {name: sam}}",
        "architecture: {name: dsara, width: 4, cells: 4}\ndefense: {name: dsara, steps: 1, first_stage: 0}",
        "architecture: {name: dsara, width: 4, cells: 4}\ndefense: {name: dsara, steps: 1, order: second}",
    ],
)
def test_an_overflow_leaves_everything_that_is_trained_finite(
    parts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a second network, shares of an architecture, and weights that are perturbed by a gradient."""
    text = SPEC.replace("defense: {name: pgd_at, steps: 2}\n", "")
    if "architecture" in parts:
        text = text.replace("architecture: {name: small_cnn, width: 4, hidden: 8}\n", "")
    monkeypatch.setattr(precision, "GRADIENT_SCALE", 2.0**30)
    folder = run_experiment(ExperimentSpec.parse(text + parts, "tiny"), tmp_path, Screen(is_quiet=True))
    assert [record.measures["skipped"] for record in folder.records()] == [1, 1]
    training = ResumableCheckpoint.read(folder.last).training
    trained = [training.network, training.step.get("loss", {}).get("helper", {})]
    assert all(bool(value.isfinite().all()) for state in trained for value in state.values())


def test_other_precisions_record_no_overflow(tmp_path: Path) -> None:
    spec = ExperimentSpec.parse(SPEC.replace("fp16", "bf16"), "tiny")
    records = run_experiment(spec, tmp_path, Screen(is_quiet=True)).records()
    assert all("skipped" not in record.measures for record in records)


# Memory format


@pytest.mark.parametrize(
    ("capability", "device", "precision", "has_norms", "expected"),
    [
        ("AVX512", "cpu", "fp32", True, True),
        ("AVX512", "cpu", "bf16", True, True),
        ("AVX512", "cpu", "fp32", False, False),
        ("AVX2", "cpu", "fp32", True, True),
        ("AVX2", "cpu", "bf16", True, True),
        ("AVX2", "cpu", "fp32", False, False),
        ("DEFAULT", "cpu", "fp32", True, False),
        ("AVX2", "cuda", "bf16", True, True),
        ("AVX2", "cuda", "fp32", True, False),
    ],
)
def test_the_format_is_chosen_by_its_rule(
    capability: str, device: str, precision: Any, has_norms: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    network = conv_net() if has_norms else nn.Conv2d(16, 16, 3)
    settings = TrainSettings(epochs=1, precision=precision)
    assert is_channels_last(network, settings, torch.device(device)) is expected
    for asked in (True, False):
        assert is_channels_last(network, replace(settings, channels_last=asked), torch.device(device)) is asked


@pytest.mark.parametrize(
    ("capability", "channels", "kernel", "stride", "expected"),
    [
        ("AVX2", 4, 1, 2, False),
        ("AVX2", 12, 1, 2, False),
        ("AVX2", 8, 1, 2, True),
        ("AVX2", 4, 1, 1, True),
        ("AVX2", 4, 3, 2, True),
        ("AVX512", 4, 1, 2, True),
    ],
)
def test_on_avx2_the_format_spares_what_onednn_would_break(
    capability: str, channels: int, kernel: int, stride: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    network = nn.Sequential(nn.Conv2d(channels, 8, kernel, stride=stride), nn.BatchNorm2d(8))
    assert is_channels_last(network, TrainSettings(epochs=1), CPU) is expected
    asked = TrainSettings(epochs=1, channels_last=True)
    if expected:
        assert is_channels_last(network, asked, CPU)
    else:
        with pytest.raises(RobustCliError, match=r"^train\.channels_last: true: .* write auto or false$"):
            is_channels_last(network, asked, CPU)


# Emulated precisions


@pytest.mark.parametrize(
    ("machine", "mkldnn", "avx512_bf16", "precision", "expected"),
    [
        ("x86_64", {"bf16": True, "fp16": False}, True, "bf16", True),
        ("x86_64", {"bf16": True, "fp16": False}, True, "fp16", False),
        ("x86_64", {"bf16": True, "fp16": True}, True, "fp16", True),
        # AVX-512 without instructions for bf16, for which oneDNN converts.
        ("x86_64", {"bf16": True, "fp16": False}, False, "bf16", False),
        ("AMD64", {"bf16": True, "fp16": False}, False, "bf16", False),
        ("x86_64", {"bf16": False, "fp16": False}, False, "bf16", False),
        # Instructions that oneDNN is configured not to use.
        ("x86_64", {"bf16": False, "fp16": False}, True, "bf16", False),
        ("aarch64", {"bf16": True, "fp16": True}, False, "bf16", True),
        ("x86_64", {"bf16": False, "fp16": False}, False, "fp32", True),
    ],
)
def test_the_instructions_of_a_processor_are_detected(
    machine: str,
    mkldnn: dict[str, bool],
    avx512_bf16: bool,
    precision: Any,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    for name, is_there in mkldnn.items():
        monkeypatch.setattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", lambda is_there=is_there: is_there)
    assert is_native(precision, CPU) is expected
    told = emulation("train.precision: x", precision, CPU, "train.precision: fp32")
    assert (told is None) is expected
    if told is not None:
        assert told.startswith("train.precision: x: this processor")
        assert f"no instructions for {precision}" in told
        assert told.endswith("write train.precision: fp32")


def test_without_onednn_nothing_has_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert [is_native(name, CPU) for name in ("fp32", "bf16", "fp16")] == [True, False, False]  # type: ignore[arg-type]


@pytest.mark.parametrize("has_them", [True, False])
def test_a_run_warns_once_of_emulated_precision_and_records_it(
    has_them: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "is_native", lambda name, _device: has_them or name == "fp32")
    spec = ExperimentSpec.parse(SPEC.replace("fp16", "bf16"), "tiny")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        folder = run_experiment(spec, tmp_path, Screen(is_quiet=True))
    told = [str(warning.message) for warning in caught if "no instructions" in str(warning.message)]
    (session,) = read_json(folder.provenance)["sessions"]
    assert told == ([] if has_them else [session["emulated"]])
    assert ("emulated" in session) is not has_them


# Choices left to the machine


LEFT = SPEC.replace("precision: fp16, ", "").replace("device: cpu", "device: auto")


def chosen(overrides: list[str], *, epochs: int = 2) -> tuple[str, bool]:
    """Precision and compilation of a spec on this machine; a long run only has more epochs."""
    spec = ExperimentSpec.parse(override_text(LEFT, [f"train.epochs={epochs}", *overrides], "tiny"), "tiny")
    device = choose_device(spec.train.device)
    settings = chosen_settings(spec, instantiate(spec.defense), load_data(spec.data, CPU, to_train=True), device)
    assert isinstance(settings.compile, bool)
    return settings.precision, settings.compile


def test_a_processor_trains_in_fp32_and_compiles_nothing() -> None:
    assert chosen([], epochs=10_000) == ("fp32", False)
    assert chosen(["train.precision=bf16", "train.compile=true"]) == ("bf16", True)


def test_a_gpu_trains_in_bf16_and_compiles_what_is_long() -> None:
    with simulated_gpu():
        assert chosen([]) == ("bf16", False)
        assert chosen([], epochs=5_000) == ("bf16", True)
        assert chosen([], epochs=4_999) == ("bf16", False)
        assert chosen(["train.precision=fp32"], epochs=5_000) == ("fp32", True)
        assert chosen(["train.compile=false"], epochs=5_000) == ("bf16", False)
        # Nothing to compile for, or not possible.
        assert chosen(["train.batch_size=41"], epochs=20_000) == ("bf16", False)
        assert chosen(["train.precision=fp16"], epochs=5_000) == ("fp16", False)
        assert chosen(["defense=grad_align"], epochs=5_000) == ("fp32", False)
        assert chosen(["train.device=cpu"], epochs=5_000) == ("fp32", False)


def test_a_gpu_without_bf16_trains_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    with simulated_gpu():
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
        assert chosen([]) == ("fp32", False)


def test_what_is_left_to_the_machine_changes_no_digest() -> None:
    def digest(*overrides: str) -> str:
        return ExperimentSpec.parse(override_text(LEFT, overrides, "tiny"), "tiny").digest

    assert digest() == digest("train.precision=auto") == digest("train.precision=fp32", "train.compile=false")
    assert digest() != digest("train.precision=bf16")
    assert digest() != digest("train.compile=true")


def test_a_run_keeps_the_precision_in_which_it_began(tmp_path: Path) -> None:
    """A run started in bf16 is resumed in bf16 on a CPU; with fp32 in the spec it is another run."""
    spec = ExperimentSpec.parse(LEFT, "tiny")
    screen = Stopped()
    with pytest.MonkeyPatch.context() as elsewhere:
        elsewhere.setattr("robustcli.training.choices.native_precision", lambda _: "bf16")
        with pytest.raises(KeyboardInterrupt):
            run_experiment(spec, tmp_path, screen)
    (said,) = screen.said
    assert re.fullmatch(r"passes: precision bf16 \(auto\), channels_last \w+ \(auto\), compile false \(auto\)", said)
    other = replace(spec, train=replace(spec.train, precision="fp32"))
    with pytest.raises(RobustCliError, match=r"started in bf16, .* this spec has train\.precision: fp32"):
        run_experiment(other, tmp_path, Screen(is_quiet=True), resume=True)
    folder = run_experiment(spec, tmp_path, Screen(is_quiet=True), resume=True)
    sessions = read_json(folder.provenance)["sessions"]
    assert [session.get("precision") for session in sessions] == ["bf16", "bf16"]
    assert read_json(folder.results)["precision"] == "bf16"


def test_a_run_of_an_earlier_version_stays_in_fp32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ExperimentSpec.parse(LEFT, "tiny")
    with pytest.raises(KeyboardInterrupt):
        run_experiment(spec, tmp_path, Stopped())
    folder = folder_of(tmp_path, spec)
    known = read_json(folder.provenance)
    del known["sessions"][0]["precision"]
    write_json(folder.provenance, known)
    monkeypatch.setattr("robustcli.training.choices.native_precision", lambda _: "bf16")
    run_experiment(spec, tmp_path, Screen(is_quiet=True), resume=True)
    assert [session.get("precision") for session in read_json(folder.provenance)["sessions"]] == [None, "fp32"]


class Stopped(Screen):
    """Ends the process after the first epoch, before its checkpoint."""

    def __init__(self) -> None:
        super().__init__(is_quiet=True)
        self.said: list[str] = []

    def settings(self, text: str) -> None:
        self.said.append(text)

    def epoch(self, record: Record) -> None:
        raise KeyboardInterrupt


# Weights in 16 bits


class Casts(TorchDispatchMode):
    """Counts copies of the weights of a network in another type, by the name of the weight."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._names = {weight.untyped_storage().data_ptr(): name for name, weight in network.named_parameters()}
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default and (name := self._names.get(args[0].untyped_storage().data_ptr())):
            self.count[name] += 1
        return func(*args, **(kwargs or {}))


class ReadsItsWeights(nn.Module):
    """Convolutions and a product, with a layer that uses the weights of another."""

    def __init__(self) -> None:
        super().__init__()
        self.body = conv_net()
        self.scale = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        assert self.scale.weight.dtype == torch.float32
        logits: Tensor = self.scale(self.body(x)[:, :3]) * self.scale.weight.sum()
        return logits


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_ten_passes_of_an_attack_cast_every_weight_once(name: Any) -> None:
    network = ReadsItsWeights()
    model = TrainingModel(network, replace(FP16, precision=name), CPU).train()
    x, y = images(4), labels(4, 3)
    cast = [key for key, weight in network.named_parameters() if "norm" not in key and weight.dim() > 1]
    with Casts(network) as casts, crafting(model, "eval"):
        adversarial = Pgd(steps=10)(model, x, y, ThreatModel("linf", Fraction(8, 255)), StreamNoise.on(CPU))
    assert {key: casts.count[key] for key in cast} == dict.fromkeys(cast, 1)
    assert max(casts.count.values()) == 1
    # Bit-identical to casting in every pass.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingModel, "cast_to", None)
        with Casts(network) as casts, crafting(model, "eval"):
            again = Pgd(steps=10)(model, x, y, ThreatModel("linf", Fraction(8, 255)), StreamNoise.on(CPU))
    assert min(casts.count[key] for key in cast) >= 10
    assert torch.equal(adversarial, again)


def test_after_an_attack_the_weights_learn_as_ever() -> None:
    network = conv_net()
    model = TrainingModel(network, replace(FP16, precision="bf16"), CPU).train()
    x, y = images(4), labels(4)
    expected = gradients_of(deepcopy(model), x, y)
    with crafting(model, "eval"), crafting(model, "eval"):
        model(x)
    assert not any("forward" in vars(module) for module in network.modules())
    assert all(map(torch.equal, gradients_of(model, x, y), expected))
