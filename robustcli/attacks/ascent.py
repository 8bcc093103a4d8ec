"""The loop of PGD-like attacks.

Attacks differ in four parts: the start, the move, the stopping rule and the point that is kept.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.attacks.active_set import ActiveSet, early_exit
from robustcli.attacks.best_so_far import BestSoFar
from robustcli.attacks.gradient import Objective, Rows, is_fooled
from robustcli.threat.threat import ThreatModel

# Largest difference of logits that counts as rounding, in units of the last place of the largest logit.
_ROUNDING = 100


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


class Repeats:
    """A mask of the images whose point is the same as at an earlier look, and whose logits nearly are.

    Steps of one length along the sign of the gradient often end in a cycle of a few points. If the next point depends
    only on the present one, such an image would repeat points that it has seen until its last step. The logits are
    compared, too, because a network that draws noise might go elsewhere from the same point; they may differ by
    rounding, because other images have left the batch. Points are compared by 64-bit sums of their bits.

    Args:
        x: all images of the batch.
        steps: number of moves.
    """

    def __init__(self, x: Tensor, steps: int) -> None:
        self._images = torch.arange(len(x), device=x.device)
        self._marks = torch.zeros((steps, len(x)), dtype=torch.int64, device=x.device)
        self._logits: Tensor | None = None
        self._type = {torch.float32: torch.int32, torch.float64: torch.int64}[x.dtype]
        # Fixed random factors, so that different points have different sums.
        generator = torch.Generator().manual_seed(0)
        self._factors = torch.randint(-(2**62), 2**62, (x[0].numel() if len(x) else 0,), generator=generator)
        self._factors = self._factors.mul_(2).add_(1).to(x.device)

    def __call__(self, look: Look) -> Tensor:
        marks = (look.points.flatten(1).view(self._type) * self._factors).sum(1)
        if self._logits is None:
            self._logits = look.logits.new_empty((len(self._marks), len(self._images), *look.logits.shape[1:]))
        is_same = self._marks[: look.step, look.rows] == marks
        repeats = torch.zeros_like(marks, dtype=torch.bool)
        if bool(is_same.any()):
            before = self._logits[is_same.int().argmax(0), self._images[look.rows]]
            change, size = ((values.flatten(1).abs().amax(1)) for values in (before - look.logits, look.logits))
            repeats = is_same.any(0) & (change <= _ROUNDING * torch.finfo(size.dtype).eps * size)
        self._marks[look.step, look.rows] = marks
        self._logits[look.step, look.rows] = look.logits
        return repeats


def gradient_ascent(
    objective: Objective,
    start: Tensor,
    steps: int,
    move: Move,
    *,
    stop: Stop | None = None,
    repeats: Stop | None = None,
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
        repeats: decides which of the other images stop, because they would only repeat earlier points; not asked within
            `no_early_exit`.
        best: receives every point. An image that stops keeps the point where it stopped.
        active: images to move; None means all, and stopped images leave the batch.
    """
    points = start
    if active is None:
        active = ActiveSet(start)
    if stop is not None:
        points = start.clone()
    if not early_exit():
        repeats = None
    for step in range(steps):
        rows = active.rows
        look = Look(step, rows, points[rows], *objective.gradient(points[rows], rows))
        is_done = None if stop is None else stop(look)
        if best is not None:
            best.update(look.points, look.scores, is_done, rows)
        if is_done is None:
            points = move(look)
            continue
        stays = active.stop(is_done if repeats is None else is_done | repeats(look))
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


def step_length(step_size: float | None, threat: ThreatModel) -> float:
    """Return the length of one step in the unit of eps: `step_size`, or a quarter of eps if it is None."""
    return threat.radius / 4 if step_size is None else step_size


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
