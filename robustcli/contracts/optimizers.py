"""Contract of every optimizer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

Make = Callable[[list[dict[str, Any]], float], Optimizer]


def lowers_a_loss(make: Make) -> None:
    """Groups have the given learning rate and weight decay; a quadratic function is minimized."""
    weight, held = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    optimizer = make([{"params": [weight], "weight_decay": 0.0}, {"params": [held], "weight_decay": 0.5}], 0.01)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.01]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.5]
    for _ in range(50):
        optimizer.zero_grad()
        (weight.square().sum() + 0 * held.sum()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert weight.abs().max() < 0.9
    assert held.abs().max() < 0.9, "no weight decay"
