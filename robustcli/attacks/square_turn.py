"""The search of the Square attack: some queries of every image, each image at its own pace."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustcli.attacks.gradient import Rows, picked
from robustcli.attacks.losses import margin
from robustcli.attacks.square_ahead import Ahead
from robustcli.attacks.square_tiles import Proposals

# If more proposals than this share change something, the others stay in the batch: removing them takes time, too.
_WORTH_SKIPPING = 0.8


@dataclass
class Points:
    """A point of every image, its margin (n,) and whether the model is fooled (n,)."""

    points: Tensor
    margins: Tensor
    is_fooled: Tensor

    @classmethod
    def none(cls, x: Tensor) -> "Points":
        """Return the clean images, as if they had not been classified yet."""
        margins = torch.full((len(x),), -torch.inf, device=x.device, dtype=x.dtype)
        return cls(x.clone(), margins, torch.zeros(len(x), dtype=torch.bool, device=x.device))

    def rows(self, keep: Rows) -> "Points":
        """Return some rows."""
        return Points(picked(self.points, keep), picked(self.margins, keep), picked(self.is_fooled, keep))

    def put(self, rows: Rows, others: "Points") -> None:
        """Replace some rows."""
        self.points[rows], self.margins[rows], self.is_fooled[rows] = others.points, others.margins, others.is_fooled

    def is_less_than(self, others: "Points") -> Tensor:
        """Mask (n,) of the rows where other points are worse for the model; a misclassified point is never replaced."""
        return ~self.is_fooled & (others.is_fooled | (others.margins > self.margins))


def judged(model: nn.Module, points: Tensor, labels: Tensor) -> Points:
    """Classify points."""
    with torch.no_grad():
        logits = model(points)
    return Points(points, margin(logits, labels), logits.argmax(1) != labels)


@dataclass
class Turn:
    """Queries of every image whose random numbers were drawn together.

    Images stay in step while a pass holds one proposal each. A pass may also hold the next proposals of each image as
    if all of them were rejected: the first improvement counts, and the image continues after it. The positions of the
    images are then kept on the CPU.

    Args:
        labels: labels of the images, which the model classifies correctly so far.
        best: their best points; replaced in place.
        proposals: proposals of all queries.
        queries: number of queries.
        ahead: chooses the number of proposals.
    """

    model: nn.Module
    labels: Tensor
    best: Points
    proposals: Proposals
    queries: int
    ahead: Ahead

    def __post_init__(self) -> None:
        # Thread time is less disturbed by other programs, but does not measure an accelerator.
        self._clock = time.thread_time if self.labels.device.type == "cpu" else time.perf_counter

    def run(self) -> None:
        """Run all queries of every image, or until the model is fooled."""
        rows: Rows = slice(None)  # Avoids copies while all images are active.
        count = len(self.labels)
        for query in range(self.queries):
            number, start = self.ahead.choose(count), self._clock()
            if number > 1:
                self._go_apart(query)
                return
            passes, accepted, is_fooling = self._try_one(rows, query, skips=number == 1)
            if is_fooling:
                rows = (~self.best.is_fooled).nonzero().flatten()
            self.ahead.learn(number, count, self._clock() - start, passes, count, accepted)
            if is_fooling and not (count := len(picked(self.labels, rows))):
                return

    def _try_one(self, rows: Rows, query: int, *, skips: bool) -> tuple[int, int, bool]:
        """Try one proposal of each image.

        Args:
            skips: whether proposals that change nothing may be left out of the pass.

        Returns:
            The numbers of proposals that passed through the network and that were accepted, and whether one fooled it.
        """
        best, labels = self.best.rows(rows), picked(self.labels, rows)
        points = self.proposals.at(rows, query, best.points)
        if skips:
            found, passes = self._classified(points, best.points, labels)
        else:
            found, passes = judged(self.model, points, labels), len(points)
        taken = best.is_less_than(found).nonzero().flatten()
        if not len(taken):
            return passes, 0, False
        self.best.put(taken if isinstance(rows, slice) else rows[taken], found.rows(taken))
        return passes, len(taken), bool(found.is_fooled[taken].any())

    def _go_apart(self, first: int) -> None:
        """Run all queries from `first` on, each image at its own pace."""
        done = torch.full((len(self.labels),), first)
        done[self.best.is_fooled.cpu()] = self.queries
        while len(live := (done < self.queries).nonzero().flatten()):
            number, start = max(1, self.ahead.choose(len(live))), self._clock()
            passes, has, passed = self._try_several(live, done[live], number)
            done[live] += passed
            if bool(has.any()):
                done[self.best.is_fooled.cpu()] = self.queries
            useful, accepted = int(passed.sum()), int(has.sum())
            self.ahead.learn(number, number * len(live), self._clock() - start, passes, useful, accepted)

    def _try_several(self, live: Tensor, begun: Tensor, number: int) -> tuple[int, Tensor, Tensor]:
        """Try up to `number` proposals of each image, from its current query.

        Returns:
            The number of proposals that passed through the network, a mask of the images that accepted one, and the
            proposals of each image up to that one.
        """
        queries = begun[:, None] + torch.arange(number)
        exists = queries < self.queries
        images = live[:, None].expand_as(queries)[exists]
        rows = images.to(self.labels.device)
        best = self.best.rows(rows)
        points = self.proposals.at(rows, queries[exists], best.points)
        found, passes = self._classified(points, best.points, self.labels[rows])
        is_better = best.is_less_than(found).cpu()
        accepts = torch.zeros_like(exists).masked_scatter(exists, is_better)
        has, count, first = accepts.any(1), exists.sum(1), accepts.int().argmax(1)
        taken = (count.cumsum(0) - count + first)[has].to(self.labels.device)
        self.best.put(rows[taken], found.rows(taken))
        return passes, has, torch.where(has, first + 1, count)

    def _classified(self, points: Tensor, best: Tensor, labels: Tensor) -> tuple[Points, int]:
        """Classify points; those equal to the best ones get a margin of -inf.

        Returns:
            The points, and how many of them passed through the network.
        """
        is_new = (points - best).flatten(1).abs_().amax(1) != 0
        row = is_new.nonzero().flatten()
        if len(row) > _WORTH_SKIPPING * len(points):
            found = judged(self.model, points, labels)
            found.margins.masked_fill_(~is_new, -torch.inf)
            return found, len(points)
        margins = points.new_full((len(points),), -torch.inf)
        found = Points(points, margins, torch.zeros_like(is_new))
        if len(row):
            new = judged(self.model, picked(points, row), labels[row])
            found.margins[row], found.is_fooled[row] = new.margins, new.is_fooled
        return found, len(row)
