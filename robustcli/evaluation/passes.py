"""Passes of models: make one, and count how many examples pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


def run_pass(network: nn.Module, x: Tensor, *, has_gradient: bool) -> Tensor:
    """Make a pass to be timed: logits of images, or a gradient at them."""
    if not has_gradient:
        with torch.no_grad():
            logits: Tensor = network(x)
        return logits
    points = x.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(network(points).sum(), points)
    return gradient


@dataclass
class Passes:
    """Numbers of examples in forward passes and in gradients, and of the calls in which they pass."""

    forwards: int = 0
    gradients: int = 0
    forward_calls: int = 0
    gradient_calls: int = 0


@contextmanager
def count_passes(*models: nn.Module) -> Iterator[Passes]:
    """Count the examples that pass forward through models, and those with a gradient."""
    passes = Passes()

    def count(_module: nn.Module, _inputs: Any, logits: Tensor) -> None:
        examples = len(logits)
        passes.forwards += examples
        passes.forward_calls += 1

        def count_gradient(_gradient: Tensor) -> None:
            passes.gradients += examples
            passes.gradient_calls += 1

        if logits.requires_grad:
            logits.register_hook(count_gradient)  # type: ignore[no-untyped-call]

    # A model may be given twice, but counts once.
    hooks = [model.register_forward_hook(count) for model in dict.fromkeys(models)]
    try:
        yield passes
    finally:
        for hook in hooks:
            hook.remove()
