"""Nothing waits for the device inside an epoch, on a GPU or on a simulated one."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from products import products
from simulated_gpu import simulated_gpu

from robustcli.cli.progress import Screen
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.files import read_json
from robustcli.training import loop as train
from robustcli.workflows.train import run_experiment

SPEC = """
name: no_waiting
data: {name: digits, val_size: 20, train_size: 128, augment: {crop: 1, flip: true, AUGMENT}}
architecture: {name: preact_resnet18, width: 4}
threat: {norm: linf, eps: 0.1}
defense: DEFENSE
train: {epochs: 1, batch_size: 64, device: cuda, precision: PRECISION, compile: COMPILE}
evaluate: {clean: {name: clean, examples: 20}}
"""
DEFENSES = {
    "pgd_at": "{name: pgd_at, steps: 2}",
    "n_fgsm": "{name: n_fgsm}",
    "trades_awp_ema": "{name: trades, steps: 2, weights: {name: awp, gamma: 0.01}, averaging: {name: ema}}",
}


def watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the device is an error from the first update of an epoch to its end.

    The first update may wait: it creates the optimizer's state and the compiled programs.
    """
    update, ask = train._update, train._raise_if_not_finite

    def watched_update(*arguments: Any) -> None:
        update(*arguments)
        torch.cuda.set_sync_debug_mode("error")

    def unwatched(*arguments: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")
        ask(*arguments)

    monkeypatch.setattr(train, "_update", watched_update)
    monkeypatch.setattr(train, "_raise_if_not_finite", unwatched)


def run(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **words: str) -> None:
    for name, word in {"AUGMENT": "cutout: 0", "PRECISION": "fp32", "COMPILE": "false", **words}.items():
        spec = spec.replace(name, word)
    is_real = torch.cuda.is_available()
    if not is_real and words.get("COMPILE") == "true":
        pytest.skip("needs a CUDA device: compilation is not simulated")
    watch(monkeypatch)
    with nullcontext() if is_real else simulated_gpu():
        try:
            folder = run_experiment(ExperimentSpec.parse(spec, "the test"), tmp_path, Screen(is_quiet=True))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert read_json(folder.results)["evaluations"]["clean"]["total"] == 20


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.parametrize("is_compiled", ["false", "true"])
@pytest.mark.parametrize(("defense", "precision"), products(list(DEFENSES), ["fp32", "bf16"], strength=1))
def test_updates_do_not_wait(
    defense: str, precision: str, is_compiled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(SPEC, tmp_path, monkeypatch, DEFENSE=DEFENSES[defense], PRECISION=precision, COMPILE=is_compiled)


@pytest.mark.slow
@pytest.mark.gpu
def test_looking_for_overflow_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(SPEC, tmp_path, monkeypatch, DEFENSE=DEFENSES["pgd_at"], PRECISION="fp16")


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.parametrize(
    "mixer",
    ["{name: cutmix, alpha: 1}", "{name: mixup, alpha: 1}", "{name: cutout, side: 3}"],
)
def test_batches_do_not_wait(mixer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SPEC.replace("train_size: 128", f"train_size: 128, label_smoothing: 0.1, mixer: {mixer}")
    augment = "jitter: 0.2, rotate: 5, cutout: 2"
    run(spec, tmp_path, monkeypatch, DEFENSE="{name: pgd_at, steps: 2}", AUGMENT=augment)
