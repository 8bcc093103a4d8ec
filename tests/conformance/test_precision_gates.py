"""Gates on precision: input gradients of trained networks have the same signs in every precision.

Robust networks have small input gradients, so errors of a precision show there first.
"""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from trained_networks import THREATS, trained

from robustcli.attacks.gradient import input_gradient
from robustcli.attacks.losses import LOSSES
from robustcli.attacks.pgd import Pgd
from robustcli.cli.progress import Screen
from robustcli.specs.settings import TrainSettings
from robustcli.specs.spec import ExperimentSpec, override_text
from robustcli.store.files import read_json
from robustcli.threat.noise import StreamNoise
from robustcli.training.model import TrainingModel
from robustcli.workflows.train import run_experiment

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
NETWORKS = ("linf", "natural")


def cross_entropy_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return input_gradient(model, x, LOSSES["ce"], y)[0]


def in_precision(network: nn.Module, precision: Any) -> TrainingModel:
    return TrainingModel(network, TrainSettings(epochs=1, precision=precision), CPU).eval()


@pytest.mark.parametrize(("precision", "agreement"), [("fp32", 0.9999), ("bf16", 0.95), ("fp16", 0.99)])
@pytest.mark.parametrize("name", NETWORKS)
def test_signs_agree_with_double_precision(name: str, precision: str, agreement: float) -> None:
    case = trained(name)
    exact = cross_entropy_gradient(deepcopy(case.model).double(), case.x.double(), case.y)
    found = cross_entropy_gradient(in_precision(case.model, precision), case.x, case.y)
    # A gradient of zero has no sign to compare.
    counts = exact != 0
    assert float((found.sign() == exact.sign())[counts].double().mean()) >= agreement
    assert float((found == 0)[counts].double().mean()) < 1e-3


def test_without_a_scale_fp16_would_not_pass() -> None:
    """The gate can fail: without loss scaling, fp16 gradients of a mean over images lose pixels."""
    case = trained("linf")
    x = case.x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.float16):
        logits = case.model(x)
    loss = nn.functional.cross_entropy(logits.float(), case.y)
    (found,) = torch.autograd.grad(loss, x)
    exact = cross_entropy_gradient(deepcopy(case.model).double(), case.x.double(), case.y)
    assert float((found == 0)[exact != 0].double().mean()) > 1e-3


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_attacks_are_as_strong(name: str, precision: str) -> None:
    """Examples crafted in one precision and judged in single leave as many survivors, up to two images."""
    case = trained(name)
    attack = Pgd(steps=10)
    right = []
    for chosen in ("fp32", precision):
        noise = StreamNoise.on(CPU).reseed(0, "gate")
        x_adv = attack(in_precision(case.model, chosen), case.x, case.y, THREATS[name], noise)
        right.append(int((case.model(x_adv).argmax(1) == case.y).sum()))
    assert 0 < right[0] < len(case.x)
    assert abs(right[1] - right[0]) <= 2


SPEC = """\
name: gate
data: {name: digits, val_size: 50, train_size: 640}
architecture: {name: small_cnn, width: 4, hidden: 16}
threat: {norm: linf, eps: 0.1}
defense: {name: pgd_at, steps: 5}
train: {epochs: 6, batch_size: 32, lr: 1e-2, optimizer: adam, weight_decay: 0, check_examples: 50, device: cpu}
evaluate:
  pgd: {name: attack, attack: {name: pgd, steps: 20, keep: fooled}}
"""


def robust_of(precision: str, folder: Path, seeds: int) -> tuple[int, int]:
    """Numbers of survivors and of all test images over the seeds, in single precision."""
    survived = images = 0
    for seed in range(seeds):
        spec = ExperimentSpec.parse(
            override_text(SPEC, [f"seed={seed}", f"train.precision={precision}"], "gate"), "gate"
        )
        result = read_json(run_experiment(spec, folder, Screen(is_quiet=True)).evaluation("pgd").result)
        survived, images = survived + result["correct"], images + result["total"]
    return survived, images


@pytest.mark.parametrize("seeds", [1, pytest.param(2, marks=pytest.mark.full)])
def test_networks_trained_in_sixteen_bits_are_as_robust(tmp_path: Path, seeds: int) -> None:
    """Within two standard errors of the difference of two shares."""
    survived, images = robust_of("fp32", tmp_path, seeds)
    share = survived / images
    assert 0.2 < share < 0.95
    for precision in ("bf16", "fp16"):
        other = robust_of(precision, tmp_path, seeds)[0] / images
        assert abs(other - share) <= 2 * (2 * share * (1 - share) / images) ** 0.5, precision
