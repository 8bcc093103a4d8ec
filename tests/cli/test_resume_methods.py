"""Methods with state between updates, stopped after every update, give bit-identical results."""

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_resume import SPECS, contents, without_seconds

from robustcli.cli.progress import Screen
from robustcli.errors import Interrupted
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.checkpoint import ResumableCheckpoint
from robustcli.store.files import read_json
from robustcli.store.runs import RunFolder
from robustcli.workflows.train import run_experiment

SPEC = """\
name: resumed
seed: 3
data: {{name: digits, train_size: 96, augment: {{crop: 1}}, DATA}}
architecture: {{name: small_cnn, width: 4, hidden: 16}}
threat: {{norm: linf, eps: 0.1}}
defense: {}
train: {{epochs: 2, batch_size: 32, lr: 0.05, check_examples: 10, check_steps: 1, device: cpu}}
evaluate:
  clean: {{name: clean, examples: 40}}
"""
DEFENSES = {
    # Two batches of an epoch are monitored, and the steps of the third depend on both.
    "fw_at_adapt": "{name: fw_at_adapt, max_distortion: 1.0, monitor_images: 40}",
    "dynamic_at": "{name: dynamic_at, steps: 3, max_criterion: 0.05, until: 2, self_weighted: true}",
    "fat": "{name: fat, steps: 3, patiences: [0, 1], after: [1]}",
    "dial": "{name: dial, steps: 2, hidden: [5], reversal: update, weights: {name: awp, gamma: 0.01}}",
    "multi_norm": "{name: multi_norm, others: [{norm: l2, eps: 0.5}, {norm: l1, eps: 4}], combine: random, steps: 2}",
    "pyramid_at": "{name: pyramid_at, steps: 2, sides: [4, 1], multipliers: [3, 1]}",
    "hat": "{name: hat, steps: 2}",
    # Every epoch passes the threshold, so the steps rise and the scores must be kept.
    "cat": "{name: cat, steps: 3, raise_at: 0.05, weights: {name: awp, gamma: 0.01}}",
    # Their directions are kept between updates.
    "norm_decay": "{name: pgd_at, steps: 1, regularizer: {name: norm_decay, weight: 0.01}}",
    "norm_decay_in_fw_at_adapt": "{name: fw_at_adapt, monitor_images: 40, regularizer: {name: norm_decay, norm: l1}}",
    "svc": "{name: natural, regularizer: {name: svc, clip: 0.5, every: 2}}",
    "dsara": "{name: dsara, steps: 1, alpha_lr: 0.1, first_stage: 0.5}",
    "hat_with_a_helper": "{name: hat, steps: 2, helper: HELPER}",
}
# Their changes depend only on the number of the update.
STATELESS = ("dynamic_at", "fat", "multi_norm", "pyramid_at", "svc")


DATA = {
    "smoothed": "label_smoothing: 0.1",
    "smoothed_for_both": "label_smoothing: 0.1, smoothing_for: both, mixer: mixup",
    "cutmix": "mixer: cutmix, label_smoothing: 0.1",
    "extra": "extra: {{path: EXTRA, share: 0.4, label_smoothing: 0.2}}, mixer: {{name: mixup, alpha: 0.5}}",
}


class Stopping(Screen):
    """Requests a stop after every update."""

    def step(self, images: int) -> None:
        signal.raise_signal(signal.SIGTERM)


def outcome(run: RunFolder) -> dict[str, Any]:
    return {
        "best": without_seconds(contents(run.best)),
        "last": without_seconds(contents(run.last)),
        "log": [without_seconds(json.loads(line)) for line in run.log.read_text(encoding="utf-8").splitlines()],
        "results": without_seconds(read_json(run.results)),
    }


@pytest.mark.parametrize(
    "name",
    # Methods without a state resume alike, and test_resume.py covers SPECS.
    [
        *(name for name in DEFENSES if name not in STATELESS[1:]),
        *DATA,
        *(pytest.param(name, marks=pytest.mark.full) for name in (*STATELESS[1:], *SPECS)),
    ],
)
@pytest.mark.slow
def test_a_method_stopped_after_every_update_ends_the_same(name: str, tmp_path: Path) -> None:
    text = SPEC.replace("DATA", DATA.get(name, "workers: 0")).format(DEFENSES.get(name, "{name: pgd_at, steps: 1}"))
    text = SPECS.get(name, text)
    if name == "dsara":
        text = text.replace("small_cnn, width: 4, hidden: 16", "dsara, width: 2, cells: 4, nodes: 1")
    if "EXTRA" in text:
        images = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 1), dtype=np.uint8)
        np.savez(tmp_path / "more.npz", image=images, label=np.arange(50) % 10)
        text = text.replace("EXTRA", str(tmp_path / "more.npz"))
    if "HELPER" in text:
        natural = run_experiment(
            ExperimentSpec.parse(SPEC.replace("DATA", "workers: 0").format("natural"), "the test"),
            tmp_path / "helper",
            Screen(is_quiet=True),
        )
        text = text.replace("HELPER", str(natural.best))
    spec = ExperimentSpec.parse(text, "the test")
    whole = run_experiment(spec, tmp_path / "whole", Screen(is_quiet=True))
    stops = 0
    while True:
        try:
            stopped = run_experiment(spec, tmp_path / "stopped", Stopping(is_quiet=True), resume=stops > 0)
            break
        except Interrupted:
            stops += 1
    # 96 images in batches of 32 are 3 updates an epoch; of the others, 100 in batches of 32 or of 64 and twice each, 4.
    assert stops == (12 if name in SPECS else 6)
    found, expected = outcome(stopped), outcome(whole)
    for part in expected:
        assert found[part] == expected[part], part
    has_state = name == "free_ema" or (name in DEFENSES and name not in STATELESS)
    assert bool(ResumableCheckpoint.read(whole.last).training.step) == has_state
