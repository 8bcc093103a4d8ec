"""Attacks and adversarial training with other packages, in the simplest loop of their users."""

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD


def find_package(name: str, missing: list[str]) -> Any | None:
    """Return a package, or None if it is not installed; then add a note to `missing`."""
    try:
        with warnings.catch_warnings():
            # Ignore deprecation warnings inside the package.
            warnings.simplefilter("ignore", DeprecationWarning)
            return importlib.import_module(name)
    except ImportError:
        missing.append(f"{name} cannot be imported and is omitted (pip install {name})")
        return None


def torchattacks_step(
    torchattacks: Any, network: nn.Module, x: Tensor, y: Tensor, *, eps: float, steps: int, is_bf16: bool, lr: float
) -> Callable[[], None]:
    """Return one update of adversarial training with torchattacks' PGD on a batch.

    Args:
        network: network to train, in train mode and in the memory format to measure.
        x, y: batch in the same format.
        eps: radius; a step of the attack is a quarter of it.
        is_bf16: run everything under autocast.

    Reference: Kim, "Torchattacks", 2020 (arXiv 2010.01950).
    """
    attack = torchattacks.PGD(network, eps=eps, alpha=eps / 4, steps=steps)
    optimizer = SGD(network.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)

    def step() -> None:
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=is_bf16):
            x_adv = attack(x, y)
            optimizer.zero_grad()
            loss = F.cross_entropy(network(x_adv), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def torchattacks_attack(
    torchattacks: Any, network: nn.Module, norm: str, eps: float, steps: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return torchattacks' PGD with a random start; a step is a quarter of the radius."""
    kind = torchattacks.PGD if norm == "linf" else torchattacks.PGDL2
    attack: Callable[[Tensor, Tensor], Tensor] = kind(network, eps=eps, alpha=eps / 4, steps=steps, random_start=True)
    return attack


def foolbox_attack(
    foolbox: Any, network: nn.Module, norm: str, eps: float, steps: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return foolbox's PGD with a random start; a step is a quarter of the radius.

    Reference: Rauber et al., "Foolbox Native", Journal of Open Source Software, 2020.
    """
    kind = foolbox.attacks.LinfPGD if norm == "linf" else foolbox.attacks.L2PGD
    attack = kind(steps=steps, abs_stepsize=eps / 4, random_start=True)

    def call(x: Tensor, y: Tensor) -> Tensor:
        model = foolbox.PyTorchModel(network, bounds=(0, 1), device=x.device)
        points: Tensor = attack(model, x, y, epsilons=eps)[1]
        return points

    return call
