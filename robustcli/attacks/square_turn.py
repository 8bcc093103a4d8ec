"""The search of the Square attack: some queries of every image, each image at its own pace."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustcli.attacks.gradient import Rows, picked
from robustcli.attacks.losses import margin
from robustcli.attacks.square_ahead import Ahead
from robustcli.attacks.square_tiles import Proposals


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
        skips: whether proposals that change nothing may be left out of passes.
    """

    model: nn.Module
    labels: Tensor
    best: Points
    proposals: Proposals
    queries: int
    ahead: Ahead
    skips: bool

    def __post_init__(self) -> None:
        # Thread time is less disturbed by other programs, but does not measure an accelerator.
        self._clock = time.thread_time if self.labels.device.type == "cpu" else time.perf_counter

    def run(self) -> None:
        """Run all queries of every image, or until the model is fooled."""
        rows = torch.arange(len(self.labels), device=self.labels.device)
        for query in range(self.queries):
            number, start = self.ahead.choose(len(rows)), self._clock()
            if number > 1:
                self._go_apart(rows, query)
                return
            kept, found, is_better = self._tried(rows, query)
            taken = is_better.nonzero().flatten()
            is_fooling = self._accept(picked(rows, picked(kept, taken)), found, taken)
            self.ahead.learn(1, len(rows), self._clock() - start, len(kept), len(rows), len(taken))
            if is_fooling:
                rows = picked(rows, (~picked(self.best.is_fooled, rows)).nonzero().flatten())
                if not len(rows):
                    return

    def _go_apart(self, rows: Tensor, first: int) -> None:
        """Run all queries from `first` on, each image at its own pace."""
        place = torch.full((len(rows),), first)
        # At least the largest place.
        farthest = first
        while len(rows):
            number, start = self.ahead.choose(len(rows)), self._clock()
            queries = (place[:, None] + torch.arange(number)).flatten()
            images = rows.repeat_interleave(number)
            exists = (queries < self.queries).nonzero().flatten() if farthest + number > self.queries else None
            if exists is not None:
                queries, images = queries[exists], images[exists.to(images.device)]
            kept, found, is_better = self._tried(images, queries)
            # The first improvement of each image counts: by its row, its proposal and where it is in `found`.
            taken: dict[int, tuple[int, int]] = {}
            better = is_better.nonzero().flatten()
            proposals = picked(kept, better).cpu()
            for at, proposal in enumerate((proposals if exists is None else exists[proposals]).tolist()):
                taken.setdefault(proposal // number, (proposal % number, at))
            is_fooling = False
            done = int(place.sum())
            place += number
            if taken:
                passed, ats = zip(*taken.values(), strict=True)
                accepting = torch.tensor([*taken])
                place[accepting] += torch.tensor(passed) + (1 - number)
                is_fooling = self._accept(
                    rows[accepting.to(rows.device)], found, better[torch.tensor(ats).to(better.device)]
                )
            farthest += number
            if farthest >= self.queries:
                place.clamp_(max=self.queries)
                farthest = int(place.max())
            useful = int(place.sum()) - done
            self.ahead.learn(number, number * len(rows), self._clock() - start, len(kept), useful, len(taken))
            if is_fooling or farthest >= self.queries:
                stays = ((place < self.queries) & ~picked(self.best.is_fooled, rows).cpu()).nonzero().flatten()
                place, rows = place[stays], rows[stays.to(rows.device)]

    def _tried(self, images: Tensor, queries: Tensor | int) -> tuple[Tensor, Points, Tensor]:
        """Try proposals of some images.

        Args:
            images: (m,) indices; an image may occur with several queries.
            queries: (m,) on the CPU, or one query for all these images.

        Returns:
            The proposals that were classified, as indices (k,) into `images`, their points, and a mask (k,) of those
            that are worse for the model than the best ones.
        """
        if self.skips:
            kept, points = self.proposals.changed(images, queries, self.best.points)
        else:
            kept = torch.arange(len(images), device=images.device)
            points = self.proposals.at(images, queries, picked(self.best.points, images))
        images = picked(images, kept)
        if not len(kept):
            return kept, self.best.rows(kept), torch.zeros_like(kept, dtype=torch.bool)
        found = judged(self.model, points, picked(self.labels, images))
        # The best points of these images do not fool the model.
        return kept, found, found.is_fooled | (found.margins > picked(self.best.margins, images))

    def _accept(self, images: Tensor, found: Points, taken: Tensor) -> bool:
        """Replace the best points of images by some of the points that were found; whether one fools the model."""
        if not len(taken):
            return False
        others = found.rows(taken)
        self.best.put(images, others)
        return bool(others.is_fooled.any())
