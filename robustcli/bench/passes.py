"""Passes through the network: how many a step makes, how many it must make, and what those cost alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from robustcli.catalog import catalog
from robustcli.errors import RobustCliError


@dataclass(frozen=True)
class Passes:
    """Passes through the network in one update, per image of the batch.

    Args:
        forwards: every one, with or without a gradient to follow.
        input_gradients: backwards to the input that leave the weights alone.
        weight_gradients: backwards to the weights. One backward through two forwards counts as two.
    """

    forwards: float = 0
    input_gradients: float = 0
    weight_gradients: float = 0


@dataclass
class PassCounter:
    """Images that went through the network so far, by kind of pass."""

    forwards: int = 0
    input_gradients: int = 0
    weight_gradients: int = 0

    def per_image(self, batch_size: int) -> Passes:
        return Passes(self.forwards / batch_size, self.input_gradients / batch_size, self.weight_gradients / batch_size)


@contextmanager
def passes_by_kind(network: nn.Module) -> Iterator[PassCounter]:
    """Count what goes through a network, exactly: a backward is told by which gradients its first convolution computed.

    Raises:
        RobustCliError: the network has no convolution to look at.
    """
    counter = PassCounter()
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None:
        raise RobustCliError("passes are counted at the first convolution; this network has none")

    def went_forward(_module: nn.Module, _inputs: Any, features: Tensor) -> None:
        images = len(features)
        counter.forwards += images

        def came_back(gradients: tuple[Tensor | None, ...], _: Any) -> None:
            # Of the input, the weight and the bias; None where autograd left it out.
            if gradients[1] is not None:
                counter.weight_gradients += images
            else:
                counter.input_gradients += images

        if features.grad_fn is not None:
            features.grad_fn.register_hook(came_back)

    hook = first.register_forward_hook(went_forward)
    try:
        yield counter
    finally:
        hook.remove()


def least_passes(defense: str, weights: str) -> Passes | None:
    """The passes that the mathematics of a method demands in its default form, or None where nobody has counted.

    Args:
        defense, weights: registered names.
    """
    member = catalog("defenses").get(defense)
    # How often the loss is differentiated in the weights: once, and once more to find the worst weights.
    times = {"none": 1, "awp": 2, "sam": 2}
    if member is None or member.passes is None or weights not in times:
        return None
    forwards, images, batches = member.passes
    again = batches * (times[weights] - 1)
    return Passes(forwards + again, images, batches + again)


class PassesAlone:
    """The passes of an update with nothing around them: no noise, no projection, no change of mode.

    Forwards without a gradient and gradients of the input run in eval mode at weights that want no gradient;
    gradients of the weights in train mode. The update of the weights is part of it.

    Args:
        model: called for every pass; copied.
        passes: per image; what is left of a whole number is made with a part of the batch.
        x, y: the batch.
    """

    def __init__(self, model: nn.Module, passes: Passes, x: Tensor, y: Tensor, lr: float) -> None:
        self.trained = deepcopy(model).train()
        self.held = deepcopy(model).eval().requires_grad_(False)
        self.optimizer = SGD(self.trained.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
        looks = passes.forwards - passes.input_gradients - passes.weight_gradients
        self.looks = _batches(looks, x, y)
        self.input_gradients = _batches(passes.input_gradients, x, y)
        self.weight_gradients = _batches(passes.weight_gradients, x, y)

    def __call__(self) -> None:
        with torch.no_grad():
            for x, _ in self.looks:
                self.held(x)
        for x, y in self.input_gradients:
            x = x.detach().requires_grad_()
            torch.autograd.grad(F.cross_entropy(self.held(x), y, reduction="sum"), x)
        self.optimizer.zero_grad()
        for x, y in self.weight_gradients:
            F.cross_entropy(self.trained(x), y).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


def _batches(passes: float, x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    whole, rest = divmod(round(passes * len(x)), len(x))
    return [(x, y)] * whole + ([(x[:rest], y[:rest])] if rest else [])
