"""The worst points that a search has seen."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Worst:
    """The worst point seen so far of every example.

    Args:
        points: (n, c, h, w).
        losses: (n,), -inf where no point was seen.
    """

    points: Tensor
    losses: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "Worst":
        """Nothing seen yet."""
        return cls(x.clone(), torch.full((len(x),), -torch.inf, device=x.device, dtype=x.dtype))

    def see(self, points: Tensor, losses: Tensor) -> None:
        """Keep the points whose loss is higher than any before."""
        is_worse = losses > self.losses
        self.points = torch.where(is_worse.view(-1, *[1] * (points.dim() - 1)), points, self.points)
        self.losses = torch.where(is_worse, losses, self.losses)

    def see_rows(self, rows: Tensor, points: Tensor, losses: Tensor, is_fooled: Tensor) -> Tensor:
        """Keep points of some rows; one that fools the model wins over any loss. Returns the rows still right."""
        is_kept = is_fooled | (losses > self.losses[rows])
        self.points[rows[is_kept]] = points[is_kept]
        self.losses[rows[is_kept]] = losses[is_kept]
        return ~is_fooled
