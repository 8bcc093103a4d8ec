"""Snapshots of a model that show what changed, and a model that fails at a given call."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn

Snapshot = dict[str, object]


class PlannedError(Exception):
    """Raised by a `Failing` network."""


class Failing(nn.Module):
    """A network whose forward fails in call number `at`, from 1."""

    def __init__(self, network: nn.Module, at: int) -> None:
        super().__init__()
        self.network = network
        self.left = at

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0:
            raise PlannedError
        logits: Tensor = self.network(x)
        return logits


def snapshot(model: nn.Module) -> Snapshot:
    """Copy weights, buffers, gradients, requires_grad, modes and hooks."""
    found: Snapshot = {}
    for name, parameter in model.named_parameters():
        found[f"weight {name}"] = parameter.detach().clone()
        found[f"requires_grad {name}"] = parameter.requires_grad
        found[f"grad {name}"] = None if parameter.grad is None else parameter.grad.clone()
    for name, buffer in model.named_buffers():
        found[f"buffer {name}"] = buffer.clone()
    for name, module in model.named_modules():
        found[f"mode {name}"] = module.training
        found[f"tracking {name}"] = getattr(module, "track_running_stats", None)
        found[f"momentum {name}"] = getattr(module, "momentum", None)
        found[f"hooks {name}"] = len(module._forward_hooks) + len(module._forward_pre_hooks)
    return found


def changes(before: Snapshot, after: Snapshot) -> list[str]:
    """Names of values that are not bit-identical."""
    assert before.keys() == after.keys()
    return [name for name in before if not _equal(before[name], after[name])]


def _equal(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return type(one) is type(other) and one == other


@contextmanager
def found_again(model: nn.Module, *, except_for: tuple[str, ...] = ()) -> Iterator[None]:
    """Assert that a block does not change the model, also when the block fails as planned."""
    before = snapshot(model)
    with suppress(PlannedError):
        yield
    changed = [name for name in changes(before, snapshot(model)) if not name.startswith(except_for)]
    assert not changed, f"left changed: {changed}"
