"""Gates on precision: input gradients of trained networks point the same way in every one of them.

A robust network has small input gradients, so what a precision loses shows there first.
"""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from trained_networks import THREATS, trained

from robustcli.attacks.crafting import ascend
from robustcli.attacks.losses import LOSSES
from robustcli.attacks.pgd import Pgd
from robustcli.noise import StreamNoise
from robustcli.specs.settings import TrainSettings
from robustcli.training_model import TrainingModel

CPU = torch.device("cpu")
NETWORKS = ("linf", "natural")


def input_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return ascend(model, x, LOSSES["ce"], y)[0]


def in_precision(network: nn.Module, precision: Any) -> TrainingModel:
    return TrainingModel(network, TrainSettings(epochs=1, precision=precision), CPU).eval()


@pytest.mark.parametrize(("precision", "agreement"), [("fp32", 0.9999), ("bf16", 0.95), ("fp16", 0.99)])
@pytest.mark.parametrize("name", NETWORKS)
def test_signs_agree_with_double_precision(name: str, precision: str, agreement: float) -> None:
    case = trained(name)
    exact = input_gradient(deepcopy(case.model).double(), case.x.double(), case.y)
    found = input_gradient(in_precision(case.model, precision), case.x, case.y)
    # Where the true gradient is none, no precision can find its sign.
    counts = exact != 0
    assert float((found.sign() == exact.sign())[counts].double().mean()) >= agreement
    assert float((found == 0)[counts].double().mean()) < 1e-3


def test_without_a_scale_fp16_would_not_pass() -> None:
    """The gate can fail: the gradient of a mean over the images, in fp16 as it is, loses pixels."""
    case = trained("linf")
    x = case.x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.float16):
        logits = case.model(x)
    loss = nn.functional.cross_entropy(logits.float(), case.y)
    (found,) = torch.autograd.grad(loss, x)
    exact = input_gradient(deepcopy(case.model).double(), case.x.double(), case.y)
    assert float((found == 0)[exact != 0].double().mean()) > 1e-3


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_attacks_are_as_strong(name: str, precision: str) -> None:
    """Crafted in one precision and judged in single: as many images survive, but for two."""
    case = trained(name)
    attack = Pgd(steps=10)
    right = []
    for chosen in ("fp32", precision):
        noise = StreamNoise.on(CPU).reseed(0, "gate")
        x_adv = attack(in_precision(case.model, chosen), case.x, case.y, THREATS[name], noise)
        right.append(int((case.model(x_adv).argmax(1) == case.y).sum()))
    assert 0 < right[0] < len(case.x)
    assert abs(right[1] - right[0]) <= 2
