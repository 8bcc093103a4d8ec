"""The loop of PGD-like attacks.

Attacks differ in four parts: the start, the move, the stopping rule and the point that is kept.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.attacks.active_set import ActiveSet
from robustcli.attacks.best_so_far import BestSoFar
from robustcli.attacks.gradient import Objective, Rows, is_fooled
from robustcli.threat.threat import ThreatModel


@dataclass(frozen=True)
class Look:
    """State of the active images of a batch at one step.

    Args:
        step: number of moves so far.
        rows: indices of these images in the batch.
        points: (m, c, h, w) current points.
        grad: gradient of the score at the points; zero after the last move, where no gradient is computed.
        scores: (m,).
        logits: (m, passes, k), of several passes if the direction is the mean of several gradients.
    """

    step: int
    rows: Rows
    points: Tensor
    grad: Tensor
    scores: Tensor
    logits: Tensor

    def only(self, keep: Tensor, rows: Rows) -> "Look":
        """Select some of the images.

        Args:
            keep: indices of these images in this state.
            rows: indices of these images in the batch.
        """
        return Look(self.step, rows, self.points[keep], self.grad[keep], self.scores[keep], self.logits[keep])


Move = Callable[[Look], Tensor]
"""Returns the next points (m, c, h, w)."""
Stop = Callable[[Look], Tensor]
"""Returns a mask (m,) of the images that stop."""


def gradient_ascent(
    objective: Objective,
    start: Tensor,
    steps: int,
    move: Move,
    *,
    stop: Stop | None = None,
    best: BestSoFar | None = None,
    active: ActiveSet | None = None,
) -> Tensor:
    """Move points uphill and return the final point of every image.

    Without `best` it costs one forward and one backward to the input per step. With it, the last points are scored
    too.

    Args:
        start: (n, c, h, w).
        steps: number of moves.
        move: computes the next points.
        stop: decides when an image stops.
        best: receives every point. An image that stops keeps the point where it stopped.
        active: images to move; None means all, and stopped images leave the batch.
    """
    points = start
    if active is None:
        active = ActiveSet(start)
    if stop is not None:
        points = start.clone()
    for step in range(steps):
        rows = active.rows
        look = Look(step, rows, points[rows], *objective.gradient(points[rows], rows))
        is_done = None if stop is None else stop(look)
        if best is not None:
            best.update(look.points, look.scores, is_done, rows)
        if is_done is None:
            points = move(look)
            continue
        stays = active.stop(is_done)
        if stays is not None:
            look = look.only(stays, active.rows)
        active.write(points, move(look))
        if active.is_empty:
            return points
    if best is not None:
        rows = active.rows
        scores, logits = objective.score(points[rows], rows)
        look = Look(steps, rows, points[rows], torch.zeros_like(points[rows]), scores, logits)
        best.update(look.points, scores, None if stop is None else stop(look), rows)
    return points


def steepest(threat: ThreatModel, x: Tensor, step_size: float) -> Move:
    """Steepest-ascent steps of one length, projected into the threat set around x."""

    def move(look: Look) -> Tensor:
        return threat.project(look.points + threat.ascent(look.grad, look.points, step_size), x[look.rows])

    return move


def once_fooled(labels: Tensor) -> Stop:
    """Stop an image at its first point that every pass misclassifies."""

    def stop(look: Look) -> Tensor:
        return is_fooled(look.logits, labels[look.rows])

    return stop
