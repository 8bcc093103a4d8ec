"""State of the points of APGD, one row each, and its two step rules."""

from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

from robustcli.threat.threat import ThreatModel, per_example

# A step size is kept when the loss rose in more than this share of the steps since the last checkpoint.
_RISING = 0.75
# Weight of a step relative to the momentum of the previous step; the first step has no momentum.
_FRESH = 0.75
# l1: share of coordinates that the first step changes; divisor of the number changed so far for later steps.
_FIRST_SHARE, _MOVED_PER_CHANGED = 0.2, 1.5


@dataclass
class PointStates:
    """State of points, each at its own step; some fields are used by only one of the two rules.

    Args:
        x, labels, reference: clean images, their labels and the reference of the loss.
        point, previous, grad: current point, point before the last move, and gradient at the current point.
        best, best_grad, best_loss: the point with the highest loss so far; -inf before the first.
        step: (n,) number of moves.
        step_size: (n,) size of the next move.
        last_loss, rises: loss at the last point, and number of rises since the last checkpoint.
        checked_loss, was_reduced: best loss at the last checkpoint, and whether it reduced the step size.
        share, moved: share of coordinates that the next sparse move changes, and number that the best point had
            changed at the last checkpoint.
    """

    x: Tensor
    labels: Tensor
    reference: Tensor
    point: Tensor
    previous: Tensor
    grad: Tensor
    best: Tensor
    best_grad: Tensor
    best_loss: Tensor
    step: Tensor
    step_size: Tensor
    last_loss: Tensor
    rises: Tensor
    checked_loss: Tensor
    was_reduced: Tensor
    share: Tensor
    moved: Tensor

    @classmethod
    def beginning(cls, x: Tensor, labels: Tensor, reference: Tensor, point: Tensor) -> "PointStates":
        """State at the starting points."""
        nothing = x.new_full((len(x),), -torch.inf)
        zeros = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return cls(
            x=x,
            labels=labels,
            reference=reference,
            point=point,
            previous=point,
            grad=torch.zeros_like(x),
            best=point,
            best_grad=torch.zeros_like(x),
            best_loss=nothing,
            step=zeros,
            step_size=torch.zeros_like(nothing),
            # Infinite, so that the start does not count as a rise.
            last_loss=-nothing,
            rises=zeros.clone(),
            checked_loss=nothing,
            was_reduced=torch.ones_like(zeros, dtype=torch.bool),
            share=torch.zeros_like(nothing),
            moved=torch.zeros_like(nothing),
        )

    def at(self, index: Tensor) -> "PointStates":
        """Select rows."""
        return PointStates(**{item.name: getattr(self, item.name)[index] for item in fields(self)})

    def joined(self, others: "PointStates") -> "PointStates":
        """Append other rows."""
        pairs = {item.name: (getattr(self, item.name), getattr(others, item.name)) for item in fields(self)}
        return PointStates(**{name: torch.cat(pair) for name, pair in pairs.items()})

    def learn(self, grad: Tensor, loss: Tensor) -> None:
        """Record the gradient and the loss at the points."""
        is_better = loss > self.best_loss
        pixels = per_example(is_better, grad)
        self.grad = grad
        self.best = torch.where(pixels, self.point, self.best)
        self.best_grad = torch.where(pixels, grad, self.best_grad)
        self.best_loss = torch.where(is_better, loss, self.best_loss)
        self.rises = self.rises + (loss > self.last_loss)
        # The published code compares the loss after the first move with 0 instead of the loss at the start.
        self.last_loss = torch.where(self.step == 0, torch.zeros_like(loss), loss)

    def go(self, points: Tensor) -> None:
        """Move to new points."""
        self.previous, self.point = self.point, points
        self.step = self.step + 1

    def return_to_best(self, returns: Tensor) -> None:
        """Move some rows back to their best points; `previous` stays, so the next momentum is relative to it."""
        pixels = per_example(returns, self.point)
        self.point = torch.where(pixels, self.best, self.point)
        self.grad = torch.where(pixels, self.best_grad, self.grad)


class StepRule(Protocol):
    """Rule for moving points in one threat set and for adapting their steps."""

    threat: ThreatModel
    periods: Tensor
    """(steps + 1,) on the CPU: moves since the last checkpoint, by number of moves; 0 if no checkpoint is due."""

    def begin(self, rows: PointStates) -> None:
        """Set the first step of new rows."""
        ...

    def adapt(self, rows: PointStates, period: Tensor) -> None:
        """Adapt the rows at a checkpoint: those whose period (n,) is not 0."""
        ...

    def move(self, rows: PointStates) -> None:
        """Make one move with every row."""
        ...


class MomentumRule:
    """Steps with momentum, 2 eps at first, halved when progress stops (Croce and Hein, ICML 2020).

    The paper halves if the loss rose in less than 75 % of the steps since the last checkpoint; the published code, as
    here, also at exactly 75 %.

    Args:
        threat: the threat model.
        steps: moves of a run. The first checkpoint is at 22 % of them, then periods shrink by 3 % to at least 6 %.
    """

    def __init__(self, threat: ThreatModel, steps: int) -> None:
        self.threat = threat
        self.periods = torch.zeros(steps + 1, dtype=torch.int64)
        period, at = max(int(0.22 * steps), 1), 0
        while at + period <= steps:
            at += period
            self.periods[at] = period
            period = max(period - max(int(0.03 * steps), 1), int(0.06 * steps), 1)

    def begin(self, rows: PointStates) -> None:
        rows.step_size = torch.full_like(rows.step_size, 2 * self.threat.radius)

    def adapt(self, rows: PointStates, period: Tensor) -> None:
        is_due = period > 0
        is_stuck = ~rows.was_reduced & (rows.checked_loss >= rows.best_loss)
        halves = is_due & ((rows.rises <= _RISING * period) | is_stuck)
        rows.return_to_best(halves)
        rows.step_size = torch.where(halves, rows.step_size / 2, rows.step_size)
        rows.was_reduced = torch.where(is_due, halves, rows.was_reduced)
        rows.checked_loss = torch.where(is_due, rows.best_loss, rows.checked_loss)
        rows.rises = rows.rises.masked_fill(is_due, 0)

    def move(self, rows: PointStates) -> None:
        step = per_example(rows.step_size, rows.grad) * self.threat.ascent(rows.grad, rows.point, 1.0)
        ahead = self.threat.project(rows.point + step, rows.x)
        momentum = rows.point - rows.previous
        fresh = per_example(torch.where(rows.step == 0, 1.0, _FRESH), rows.point)
        rows.go(self.threat.project(rows.point + (ahead - rows.point) * fresh + momentum * (1 - fresh), rows.x))


class SparseRule:
    """l1 steps that change as many coordinates as the best point suggests (Croce and Hein, ICML 2021).

    Args:
        threat: the threat model.
        steps: moves of a run; a checkpoint follows every 4 % of them.
        has_start: whether runs start at a given point, whose sparsity is then the first one.
    """

    def __init__(self, threat: ThreatModel, steps: int, *, has_start: bool) -> None:
        self.threat = threat
        self.has_start = has_start
        period = max(int(0.04 * steps), 1)
        self.periods = torch.zeros(steps + 1, dtype=torch.int64)
        self.periods[period::period] = period

    def begin(self, rows: PointStates) -> None:
        rows.step_size = torch.full_like(rows.step_size, self.threat.radius)
        if self.has_start:
            rows.moved = _moved(rows.point, rows.x)
            rows.share = rows.moved / rows.x.shape[1:].numel() / _MOVED_PER_CHANGED
        else:
            rows.moved = torch.full_like(rows.moved, rows.x.shape[1:].numel())
            rows.share = torch.full_like(rows.share, _FIRST_SHARE)

    def adapt(self, rows: PointStates, period: Tensor) -> None:
        is_due = period > 0
        moved = _moved(rows.best, rows.x)
        is_sparser = moved / rows.moved < 0.95
        rows.return_to_best(is_due & is_sparser)
        longest = self.threat.radius
        step_size = torch.where(is_sparser, longest, rows.step_size / 1.5).clamp(longest / 10, longest)
        rows.step_size = torch.where(is_due, step_size, rows.step_size)
        rows.share = torch.where(is_due, moved / rows.x.shape[1:].numel() / _MOVED_PER_CHANGED, rows.share)
        rows.moved = torch.where(is_due, moved, rows.moved)

    def move(self, rows: PointStates) -> None:
        step = self.threat.sparse_ascent(rows.grad, rows.share, rows.step_size)
        rows.go(self.threat.project(rows.point + step, rows.x))


def _moved(point: Tensor, x: Tensor) -> Tensor:
    """Number of coordinates in which each point differs from x.

    The published code also counts coordinates that its projection restores up to rounding; ours restores them exactly.
    """
    return (point != x).flatten(1).sum(1).to(x.dtype)
