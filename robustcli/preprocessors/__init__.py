"""Preprocessors: defenses that transform images before the network sees them. One per file."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from robustcli.registry.registry import Registry

PREPROCESSORS = Registry("preprocessors")


@PREPROCESSORS.protocol
class Preprocessor(Protocol):
    """Settings of a transformation of pixels: (n, c, h, w) in [0, 1] -> images in [0, 1] with as many channels.

    It is part of the network, so training, evaluation and attacks see it. Members derive from this class. Each image is
    transformed by itself: others in the batch change nothing. Attacks need a gradient, so a transformation without a
    useful one goes through `straight_through`; a random one draws from the global generator of torch and has `votes`.

    Attributes:
        votes: forward passes, the majority of which decides the class of an image; more than 1 if the transformation is
            random.
    """

    @property
    def votes(self) -> int:
        return 1

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the images that it returns."""
        return height, width

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Transformed images, in the precision of x."""
        ...


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        return function(x)

    @staticmethod
    def backward(_ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def straight_through(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Return function(x), a new tensor near x; the backward pass is that of the identity (BPDA).

    So attacks see through steps whose own gradient is zero or undefined.

    Reference: Athalye, Carlini and Wagner, ICML 2018.
    """
    if has_torch_function_unary(x):
        found: Tensor = handle_torch_function(straight_through, (x,), x, function)
        return found
    result: Tensor = _StraightThrough.apply(x, function)
    return result
