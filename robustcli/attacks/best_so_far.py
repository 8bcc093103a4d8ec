"""The worst, or the nearest, point that a search has seen for every image."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.attacks.gradient import Rows
from robustcli.threat.threat import per_example


@dataclass
class BestSoFar:
    """For every image, the point with the highest loss so far, or the one that settled it.

    Args:
        points: (n, c, h, w).
        losses: (n,), -inf before the first point.
        is_settled: (n,) bool, images whose point beats any loss, for example because it is misclassified.
    """

    points: Tensor
    losses: Tensor
    is_settled: Tensor

    @classmethod
    def start(cls, x: Tensor) -> "BestSoFar":
        """The state before any point, with x as the point."""
        losses = torch.full((len(x),), -torch.inf, device=x.device, dtype=x.dtype)
        return cls(x.clone(), losses, torch.zeros_like(losses, dtype=torch.bool))

    def update(self, points: Tensor, losses: Tensor, settles: Tensor | None = None, rows: Rows = slice(None)) -> None:
        """Store points with a higher loss than before, and points that settle their image.

        Args:
            points: (m, c, h, w).
            losses: (m,).
            settles: (m,) bool; None means none.
            rows: images of these points, none of them settled.
        """
        is_better = losses > self.losses[rows]
        if settles is not None:
            is_better = is_better | settles
            self.is_settled[rows] = settles
        self.points[rows] = torch.where(per_example(is_better, points), points, self.points[rows])
        self.losses[rows] = torch.where(is_better, losses, self.losses[rows])

    def open_rows(self) -> Tensor:
        """Indices of the images that are not settled."""
        return (~self.is_settled).nonzero().flatten()


@dataclass
class NearestSoFar:
    """For every image, the nearest point of interest so far, such as a misclassified one.

    Args:
        points: (n, c, h, w).
        distances: (n,) from the image, infinite before the first point.
    """

    points: Tensor
    distances: Tensor

    @classmethod
    def start(cls, x: Tensor) -> "NearestSoFar":
        """The state before any point, with x as the point."""
        return cls(x.clone(), torch.full((len(x),), torch.inf, device=x.device, dtype=x.dtype))

    def update(self, points: Tensor, distances: Tensor, is_candidate: Tensor, rows: Rows) -> None:
        """Store the candidates that are nearer than the points before.

        Args:
            points: (m, c, h, w).
            distances: (m,).
            is_candidate: (m,) bool.
            rows: images of these points, each once.
        """
        is_nearer = is_candidate & (distances < self.distances[rows])
        self.points[rows] = torch.where(per_example(is_nearer, points), points, self.points[rows])
        self.distances[rows] = torch.where(is_nearer, distances, self.distances[rows])
