"""Optimizers that do not import the compiler make the same updates."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from robustcli.runtime.uncompiled import without_compiler

KINDS: list[tuple[type[Optimizer], dict[str, Any]]] = [
    (SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    (Adam, {"weight_decay": 0.1}),
    (AdamW, {"betas": (0.5, 0.9)}),
]


def after_updates(kind: type[Optimizer], settings: dict[str, Any]) -> tuple[list[Tensor], list[str], dict[str, Any]]:
    """Weights after some updates with a change of state in between, records of the hooks, and the last state."""
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    seen: list[str] = []

    def started(settings: dict[str, Any]) -> Optimizer:
        optimizer = kind(network.parameters(), lr=0.1, **settings)
        optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
        optimizer.register_step_post_hook(lambda *_: seen.append("after"))
        return optimizer

    optimizer = started(settings)
    for update in range(4):
        if update == 2:
            state = optimizer.state_dict()
            optimizer = started({})
            optimizer.load_state_dict(state)
        optimizer.zero_grad()
        assert all(weight.grad is None for weight in network.parameters())
        network(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
    assert torch.is_grad_enabled()
    return [weight.detach() for weight in network.parameters()], seen, optimizer.state_dict()


@pytest.mark.parametrize(("kind", "settings"), KINDS, ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("is_used_before", [False, True])
def test_updates_hooks_and_state_are_the_same(
    kind: type[Optimizer], settings: dict[str, Any], is_used_before: bool
) -> None:
    if is_used_before:  # PyTorch patches the class of an optimizer when the first one is made.
        kind([torch.zeros(1, requires_grad=True)], lr=0.1)
    light = without_compiler(kind)
    assert issubclass(light, kind)
    weights, seen, state = after_updates(light, settings)
    expected, expected_seen, expected_state = after_updates(kind, settings)
    assert all(torch.equal(one, other) for one, other in zip(weights, expected, strict=True))
    assert seen == expected_seen == ["before", "after"] * 4
    assert str(state) == str(expected_state)
