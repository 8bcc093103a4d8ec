"""Square attack: random search that uses only logits, for every norm."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

from robustcli.attacks import ATTACKS, BatchedAttack
from robustcli.attacks.losses import labels_of
from robustcli.attacks.square_ahead import Ahead
from robustcli.attacks.square_tiles import Proposals, first_points, numbers_per_proposal, window_side
from robustcli.attacks.square_turn import Points, Turn, judged
from robustcli.registry.types import Count, Share
from robustcli.threat.noise import Noise
from robustcli.threat.threat import ThreatModel

# Windows shrink to half their area after these of 10,000 queries.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_PLANNED = 10_000
# Queries whose random numbers are drawn together: each draw costs dozens of small operations.
_DRAWN = 100


@ATTACKS.register(
    "square", passes=(5001, 0, 0), varies_in_passes=True, added={"batch_size": None}, smoke={"queries": 30}
)
@dataclass(frozen=True, kw_only=True)
class Square(BatchedAttack):
    """Score-based attack without gradients: change a random window, keep the change if the margin falls.

    The search uses only logits, so masked gradients cannot mislead it. Windows shrink during the search. Each image has
    its own windows; AutoAttack's code draws one window for all images of a batch, and its windows never reach the last
    row or column. An image leaves the batch once it is misclassified; for the others the point with the smallest margin
    is returned. If a pass has room, the next proposals of an image are tried together as if all were rejected, and the
    first improvement counts; the result is the same as one after the other.

    When to use: as a check that does not depend on gradients.

    First setting: 5000 queries, as in AutoAttack.

    Args:
        queries: proposals per attempt; each takes at most one forward if tried one by one, at most 1.5 if several are
            tried together. The start takes one more.
        p_init: share of the image that the first windows cover.
        schedule: "rescaled": windows shrink over all `queries`, as the published schedule for 10,000 does (the paper's
            code). "fixed": the schedule is not rescaled (AutoAttack's code, which ends 5,000 queries with windows of
            p_init / 128).
        restarts: attempts with other random numbers.
        batch_size: points in one pass; null is the number of images.

    Reference: Andriushchenko, Croce, Flammarion and Hein, ECCV 2020; l1: Croce and Hein, ICML 2021, appendix.
    """

    queries: Count = 5000
    p_init: Share = 0.8
    schedule: Literal["rescaled", "fixed"] = "rescaled"
    restarts: Count = 1
    batch_size: Count | None = None

    is_black_box = True
    length = "queries"
    # Windows of all sizes in a short search, too.
    alike = MappingProxyType({"schedule": "rescaled"})

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        labels, worst = labels_of(y), Points.none(x)
        rows = torch.arange(len(x), device=x.device)
        for restart in range(self.restarts):
            noise = rng.rows(rows).split(f"restart {restart}")
            first = judged(model, first_points(x[rows], threat, noise), labels[rows])
            found = self._search(model, x[rows], labels[rows], threat, noise, first)
            taken = worst.rows(rows).is_less_than(found).nonzero().flatten()
            worst.put(rows[taken], found.rows(taken))
            rows = (~worst.is_fooled).nonzero().flatten()
            if not len(rows):
                break
        return worst.points

    def improve(
        self, points: Tensor, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise
    ) -> Tensor:
        """Return better points, found by one search from given points of the threat set instead of stripes."""
        labels = labels_of(y)
        return self._search(model, x, labels, threat, rng, judged(model, points.clone(), labels)).points

    def _search(
        self, model: nn.Module, x: Tensor, labels: Tensor, threat: ThreatModel, rng: Noise, found: Points
    ) -> Points:
        """Run one attempt: the point with the smallest margin of each image, or the first misclassified one.

        Args:
            found: where it starts; replaced in place.
        """
        height, width = x.shape[-2:]
        drawn = numbers_per_proposal(threat.norm, x.shape[1])
        rows = torch.arange(len(x), device=x.device)
        # If batch norms use batch statistics, a batch must hold every image once. Short searches end before timings.
        is_independent = not any(module.training for module in model.modules())
        is_worth_it = is_independent and self.queries >= 2 * _DRAWN
        ahead = Ahead((self.batch_size or len(x)) if is_worth_it else 0)
        for first in range(0, self.queries, _DRAWN):
            stays = (~found.is_fooled[rows]).nonzero().flatten()
            rows, rng = rows[stays], rng.rows(stays)
            if not len(rows):
                break
            # Always in single precision, because other precisions would draw other windows.
            numbers = rng.uniform(torch.empty((len(rows), _DRAWN, drawn), device=x.device))
            shares = map(self._share, range(first, min(first + _DRAWN, self.queries)))
            sides = [window_side(share, height, width, threat.norm) for share in shares]
            proposals = Proposals(x[rows], threat, numbers[:, : len(sides)], sides)
            turn = Turn(model, labels[rows], found.rows(rows), proposals, len(sides), ahead, skips=is_independent)
            turn.run()
            found.put(rows, turn.best)
        return found

    def _share(self, query: int) -> float:
        """Return the share of the image that the window of a query covers."""
        planned = query * _PLANNED // self.queries if self.schedule == "rescaled" else query
        return float(self.p_init / 2 ** sum(planned > halving for halving in _HALVINGS))
