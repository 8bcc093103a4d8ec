"""The worst point for the model that a search has seen, for every image."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.attacks.gradient import Rows


@dataclass
class BestSoFar:
    """The point with the highest loss so far of every image, or the one that settles it.

    Args:
        points: (n, c, h, w).
        losses: (n,), -inf where no point was seen.
        is_settled: (n,) bool, images whose point wins over any loss, such as one that is misclassified.
    """

    points: Tensor
    losses: Tensor
    is_settled: Tensor

    @classmethod
    def start(cls, x: Tensor) -> "BestSoFar":
        """Before any point is seen; an image without any keeps x."""
        losses = torch.full((len(x),), -torch.inf, device=x.device, dtype=x.dtype)
        return cls(x.clone(), losses, torch.zeros_like(losses, dtype=torch.bool))

    def update(self, points: Tensor, losses: Tensor, settles: Tensor | None = None, rows: Rows = slice(None)) -> None:
        """Take over points with a higher loss than any before, and points that settle their image.

        Args:
            points: (m, c, h, w).
            losses: (m,).
            settles: (m,) bool; None is none.
            rows: the images that these are points of, none of them settled.
        """
        is_better = losses > self.losses[rows]
        if settles is not None:
            is_better = is_better | settles
            self.is_settled[rows] = settles
        self.points[rows] = torch.where(is_better.view(-1, *[1] * (points.dim() - 1)), points, self.points[rows])
        self.losses[rows] = torch.where(is_better, losses, self.losses[rows])

    def open_rows(self) -> Tensor:
        """Indices of the images that are not settled."""
        return (~self.is_settled).nonzero().flatten()
