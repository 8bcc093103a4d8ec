"""Training updates on a few random images, and counts of their passes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.contracts.networks import drawn_from, images, labels
from robustcli.data.targets import Labels
from robustcli.defenses import Defense
from robustcli.optimization.progress import Progress
from robustcli.threat.noise import StreamNoise
from robustcli.threat.threat import ThreatModel

LINF = ThreatModel("linf", Fraction(8, 255))
COUNT = 8


def progress(step: int = 0) -> Progress:
    return Progress(step, steps_per_epoch=3, epochs=10)


def batch(number: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return images(COUNT, seed=30 + number, dtype=dtype), labels(COUNT, seed=40 + number)


def labeled(number: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Labels]:
    """A batch as steps take it."""
    x, y = batch(number, dtype)
    return x, Labels.of(y)


def train(
    defense: Defense,
    model: nn.Module,
    *,
    updates: int = 3,
    threat: ThreatModel = LINF,
    lr: float = 0.05,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
) -> list[Tensor]:
    """Make some updates like the training loop; return weights and buffers."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    first = next(model.parameters())
    noise = StreamNoise.on(first.device)
    step = defense.start(model.train(), optimizer, noise)
    for update in range(updates):
        noise.reseed(0, "attack", update)
        with drawn_from(update):
            x, y = batch(update, first.dtype)
            step(x.to(first.device), Labels.of(y.to(first.device)), threat, progress(update))
    return [value.detach().clone() for value in model.state_dict().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@dataclass
class Passes:
    """Counts forwards of a model and backwards through its logits.

    Args:
        crafting: forwards while weights are frozen.
        weight: backwards that reach the weights; `input`: those that stop at the images.
    """

    forwards: int = 0
    crafting: int = 0
    input: int = 0
    weight: int = 0
    modes: list[bool] = field(default_factory=list)


@contextmanager
def counted(model: nn.Module) -> Iterator[Passes]:
    passes = Passes()

    def forward(_module: nn.Module, _inputs: Any, logits: Tensor) -> None:
        is_trained = any(parameter.requires_grad for parameter in model.parameters())
        passes.forwards += 1
        passes.modes.append(model.training)
        if not is_trained:
            passes.crafting += 1
            assert all(parameter.grad is None for parameter in model.parameters()), "a weight got a gradient"

        def backward(_grad: Tensor) -> None:
            if is_trained:
                passes.weight += 1
            else:
                passes.input += 1

        if logits.requires_grad:
            logits.register_hook(backward)  # type: ignore[no-untyped-call]

    hook = model.register_forward_hook(forward)
    try:
        yield passes
    finally:
        hook.remove()


def tracked(model: nn.Module) -> list[int]:
    return [int(module.num_batches_tracked) for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
