"""Nothing waits for the device inside an epoch: only a GPU can show it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from robustcli import train
from robustcli.runner import run_experiment
from robustcli.runs import read_json
from robustcli.shell.progress import Screen
from robustcli.specs.spec import ExperimentSpec

SPEC = """
name: no_waiting
data: {name: digits, val_size: 100, train_size: 256}
architecture: {name: preact_resnet18, width: 4}
threat: {norm: linf, eps: 0.1}
defense: DEFENSE
train: {epochs: 1, batch_size: 64, device: cuda, precision: PRECISION}
evaluate: {clean: {name: clean, examples: 100}}
"""
DEFENSES = {
    "pgd_at": "{name: pgd_at, steps: 2}",
    "n_fgsm": "{name: n_fgsm}",
    "trades_awp_ema": "{name: trades, steps: 2, weights: {name: awp, gamma: 0.01}, averaging: {name: ema}}",
}


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("defense", DEFENSES.values(), ids=list(DEFENSES))
def test_updates_do_not_wait(defense: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    update = train._update

    def watched(training: Any, *rest: Any) -> None:
        # The first update waits for what is made once, such as the optimiser's state.
        torch.cuda.set_sync_debug_mode("error" if training.updates else "default")
        try:
            update(training, *rest)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(train, "_update", watched)
    spec = ExperimentSpec.parse(SPEC.replace("DEFENSE", defense).replace("PRECISION", precision), "the test")
    run = run_experiment(spec, tmp_path, Screen(is_quiet=True))
    assert read_json(run.results)["evaluations"]["clean"]["total"] == 100
