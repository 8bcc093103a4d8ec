"""Number of passes through the network in one update."""

from pydantic.dataclasses import dataclass


@dataclass(frozen=True)
class Passes:
    """Passes through the network in one update, per image of the batch.

    Passes of other networks, such as a helper, count too.

    Args:
        forwards: forward passes, with or without a gradient.
        input_gradients: backward passes to the input only.
        weight_gradients: backward passes to the weights. A backward pass through two forward passes counts as two. One
            through a gradient counts as two as well: it goes through the backward pass of that gradient, which costs as
            much as a backward pass to the weights, and through the forward pass below.
    """

    forwards: float = 0
    input_gradients: float = 0
    weight_gradients: float = 0

    @property
    def total(self) -> float:
        """Cost in forward passes; gradients to the weights count twice."""
        return self.forwards + self.input_gradients + 2 * self.weight_gradients

    def __str__(self) -> str:
        return f"{self.forwards:g} + {self.input_gradients:g} + {self.weight_gradients:g}"
