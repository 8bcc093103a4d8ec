"""Adam for attacks, with separate running means for every image."""

from dataclasses import dataclass

import torch
from torch import Tensor

_FIRST, _SECOND = 0.9, 0.999


@dataclass
class Adam:
    """Running means of a gradient and of its square after `count` steps.

    Args:
        tiny: added to the root of the mean square to avoid a division by zero.
    Reference: Kingma and Ba, ICLR 2015.
    """

    mean: Tensor
    square: Tensor
    count: int = 0
    tiny: float = 1e-8

    @classmethod
    def start(cls, x: Tensor, *, tiny: float = 1e-8) -> "Adam":
        """The state before the first gradient."""
        return cls(torch.zeros_like(x), torch.zeros_like(x), tiny=tiny)

    def direction(self, grad: Tensor) -> Tensor:
        """Update the means with a gradient and return an ascent step, of size near 1 in every coordinate."""
        self.count += 1
        self.mean = _FIRST * self.mean + (1 - _FIRST) * grad
        self.square = _SECOND * self.square + (1 - _SECOND) * grad.square()
        size = (self.square / (1 - _SECOND**self.count)).sqrt()
        return self.mean / (1 - _FIRST**self.count) / (size + self.tiny)

    def rows(self, keep: Tensor) -> "Adam":
        """The means of some images."""
        return Adam(self.mean[keep], self.square[keep], self.count, self.tiny)
