"""The search of the Square attack: some queries of every image, each image at its own pace."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustcli.attacks.gradient import Rows
from robustcli.attacks.losses import margin
from robustcli.attacks.square_ahead import Ahead
from robustcli.attacks.square_tiles import proposed
from robustcli.threat.threat import ThreatModel

# Share of proposals that change something, above which the others stay in the batch: taking them out takes time, too.
_WORTH_SKIPPING = 0.8


@dataclass
class Points:
    """A point of every image, how far a wrong class is ahead there (n,), and whether the model is fooled (n,)."""

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
        return Points(self.points[keep], self.margins[keep], self.is_fooled[keep])

    def put(self, rows: Rows, others: "Points") -> None:
        """Replace some rows."""
        self.points[rows], self.margins[rows], self.is_fooled[rows] = others.points, others.margins, others.is_fooled

    def is_less_than(self, others: "Points") -> Tensor:
        """Mask (n,) of the rows where other points are worse for the model; the first that fools it stays."""
        return ~self.is_fooled & (others.is_fooled | (others.margins > self.margins))


def judged(model: nn.Module, points: Tensor, labels: Tensor) -> Points:
    """Classify points."""
    with torch.no_grad():
        logits = model(points)
    return Points(points, margin(logits, labels), logits.argmax(1) != labels)


@dataclass
class Turn:
    """Queries of every image whose random numbers were drawn together.

    A pass holds the next proposals of each image as if all of them were rejected. The first that is better counts, and
    the image goes on after it. Proposals that change nothing are rejected without a pass. What decides who goes on
    where is kept on the CPU.

    Args:
        x, labels: of the images that the model classifies correctly so far.
        best: their best points; they are replaced.
        numbers: (n, queries, ...) random numbers of the proposals.
        sides: sides of their windows, by query.
        ahead: chooses the number of proposals.
        skips: whether proposals that change nothing may be left out of the batch.
    """

    model: nn.Module
    x: Tensor
    labels: Tensor
    threat: ThreatModel
    best: Points
    numbers: Tensor
    sides: list[int]
    ahead: Ahead
    skips: bool

    def run(self) -> None:
        """Make all queries of every image, or as many as it takes to fool the model."""
        # Other programs disturb the time of this thread less; of an accelerator it says nothing.
        clock = time.thread_time if self.x.device.type == "cpu" else time.perf_counter
        done = torch.zeros(len(self.x), dtype=torch.int64)
        while len(live := (done < len(self.sides)).nonzero().flatten()):
            number, start = self.ahead.choose(len(live)), clock()
            if number == 1:
                passes, has = self._try_one(live, done[live])
                passed = torch.ones_like(live)
            else:
                passes, has, passed = self._try_several(live, done[live], number)
            done[live] += passed
            if bool(has.any()):
                done[self.best.is_fooled.cpu()] = len(self.sides)
            useful, accepted = int(passed.sum()), int(has.sum())
            seconds = clock() - start
            self.ahead.learn(number, number * len(live), seconds, passes, useful, accepted)

    def _try_one(self, live: Tensor, queries: Tensor) -> tuple[int, Tensor]:
        """Try one proposal of each image.

        Returns:
            The number of proposals that passed the network, and a mask of the images that accepted theirs.
        """
        query = int(queries[0])
        if len(live) == len(self.x) and bool((queries == query).all()):
            rows: Rows = slice(None)  # In step, as without rejected proposals: nothing has to be gathered.
            points = proposed(self.best.points, self.x, self.threat, self.numbers[:, query], self.sides[query])
            found, passes = self._classified(points, self.best.points, self.labels)
        else:
            rows = live.to(self.x.device)
            found, passes = self._classify(live, queries)
        is_better = self.best.rows(rows).is_less_than(found)
        taken = is_better.nonzero().flatten()
        if len(taken):
            self.best.put(taken if isinstance(rows, slice) else rows[taken], found.rows(taken))
        return passes, is_better.cpu()

    def _try_several(self, live: Tensor, begun: Tensor, number: int) -> tuple[int, Tensor, Tensor]:
        """Try up to `number` proposals of each image, from the query where it stands.

        Returns:
            The same as `_try_one`, and the proposals of each image up to the one that it accepted.
        """
        queries = begun[:, None] + torch.arange(number)
        exists = queries < len(self.sides)
        images = live[:, None].expand_as(queries)[exists]
        found, passes = self._classify(images, queries[exists])
        rows = images.to(self.x.device)
        is_better = self.best.rows(rows).is_less_than(found).cpu()
        accepts = torch.zeros_like(exists).masked_scatter(exists, is_better)
        has, count, first = accepts.any(1), exists.sum(1), accepts.int().argmax(1)
        taken = (count.cumsum(0) - count + first)[has].to(self.x.device)
        self.best.put(rows[taken], found.rows(taken))
        return passes, has, torch.where(has, first + 1, count)

    def _classify(self, images: Tensor, queries: Tensor) -> tuple[Points, int]:
        """Classify proposals of some images; those that change nothing get a margin of -inf.

        Returns:
            The proposals, and how many of them passed the network.
        """
        device = self.x.device
        rows = images.to(device)
        best, x, labels = self.best.points[rows], self.x[rows], self.labels[rows]
        numbers = self.numbers[rows, queries.to(device)]
        # Windows never grow, so most passes have one size of them.
        sides = sorted({self.sides[int(queries.min())], self.sides[int(queries.max())]})
        if len(sides) == 1:
            points = proposed(best, x, self.threat, numbers, sides[0])
        else:
            points = torch.empty_like(best)
            size = torch.tensor(self.sides)[queries]
            for side in sorted(set(size.tolist())):
                row = (size == side).nonzero().flatten().to(device)
                points[row] = proposed(best[row], x[row], self.threat, numbers[row], side)
        return self._classified(points, best, labels)

    def _classified(self, points: Tensor, best: Tensor, labels: Tensor) -> tuple[Points, int]:
        """Classify points; those equal to the best ones get a margin of -inf.

        Returns:
            The points, and how many of them passed the network.
        """
        is_new = (points != best).flatten(1).any(1)
        row = is_new.nonzero().flatten()
        if not self.skips or len(row) > _WORTH_SKIPPING * len(points):
            found = judged(self.model, points, labels)
            found.margins.masked_fill_(~is_new, -torch.inf)
            return found, len(points)
        found = Points.none(points)
        if len(row):
            found.put(row, judged(self.model, points[row], labels[row]))
        return found, len(row)
