"""HopSkipJump: along the decision boundary towards the image, using only the predicted classes."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from robustcli.attacks import ATTACKS, Attack
from robustcli.attacks.best_so_far import NearestSoFar
from robustcli.attacks.losses import labels_of
from robustcli.registry.types import Count
from robustcli.threat.noise import Noise
from robustcli.threat.threat import ThreatModel, per_example

# Directions whose random numbers are drawn together; a constant, because noise must not depend on the batch.
_DRAWN = 8
# Distance of the first queries from the boundary; later it depends on the distance to the image.
_FIRST_REACH = 0.1
# Maximum number of halvings of a step that ends at a correctly classified point.
_HALVINGS = 16


@ATTACKS.register(
    "hop_skip_jump",
    passes=(5000, 0, 0),
    varies_in_passes=True,
    norms=("linf", "l2"),
    smoke={"queries": 200, "samples": 12},
)
@dataclass(frozen=True, kw_only=True)
class HopSkipJump(Attack):
    """Decision-based attack: find the boundary, estimate its normal there, step along it, and repeat.

    The search needs only predicted classes, neither gradients nor logits. It starts at a misclassified image of uniform
    noise; if none is found, the clean image is returned. Bisection between a misclassified point and the image finds
    the boundary. Its normal is estimated as the mean of random directions, with the sign of the classification there.
    The step along the normal is halved until its end is misclassified. The search ignores the radius: an image is
    broken if a misclassified point lies inside the threat set. Supports only linf and l2.

    When to use: if only predicted classes are available, or if you suspect that gradients mislead attacks.

    First setting: 5000 queries on some hundred images; it is slow.

    Args:
        queries: maximum number of queries per image; a step that might exceed it is not started.
        samples: directions for the first normal; sqrt(t) times as many for the t-th.
        tries: number of noise images among which a misclassified one is searched.
        keep: "fooled": stop at a misclassified point inside the threat set. "nearest": search to the end for the
            nearest one.

    Reference: Chen, Jordan and Wainwright, HopSkipJumpAttack: a query-efficient decision-based attack, IEEE S&P
        2020.
    """

    queries: Count = 5000
    samples: Count = 100
    tries: Count = 100
    keep: Literal["fooled", "nearest"] = "fooled"

    is_black_box = True
    length = "queries"

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        threat.require_norm("hop_skip_jump", "linf", "l2")
        oracle = _Oracle(model, labels_of(y), max(len(x), 1))
        found = NearestSoFar.start(x)
        # For a misclassified image, this is the nearest point.
        rows = (~oracle.is_wrong(x, torch.arange(len(x), device=x.device))).nonzero().flatten()
        halvings = _bisections(x, threat)
        points, spent = self._begin(x, rows, oracle, rng)
        # If no noise image is misclassified, there is no starting point.
        rows = rows[points.isfinite().flatten(1).all(1)[rows]]
        rows = rows[spent[rows] + halvings <= self.queries]
        away = threat.size(points - x)
        step = 0
        while len(rows):
            points[rows] = oracle.drawn_to_boundary(points[rows], x[rows], rows, threat, halvings)
            spent[rows] += halvings
            size = threat.size(points[rows] - x[rows])
            found.update(points[rows], size, size <= threat.radius, rows)
            step += 1
            samples = int(self.samples * math.sqrt(step))
            is_open = spent[rows] + samples + _HALVINGS + halvings <= self.queries
            if self.keep == "fooled":
                is_open &= found.distances[rows] > threat.radius
            rows, size = rows[is_open], size[is_open]
            if not len(rows):
                break
            # The paper's sqrt(d) theta in l2 and d theta in linf are both 1 / (number of coordinates).
            distance = torch.full_like(size, _FIRST_REACH) if step == 1 else away[rows] / x.shape[1:].numel()
            source = rng.rows(rows).split(f"step {step}")
            normal = oracle.normal(points[rows], rows, distance, samples, threat, source)
            jumps = size / math.sqrt(step)
            points[rows], asked = oracle.jumped(points[rows], rows, threat.ascent(normal, points[rows], 1.0), jumps)
            spent[rows] += samples + asked
            away[rows] = threat.size(points[rows] - x[rows])
        return found.points

    def _begin(self, x: Tensor, rows: Tensor, oracle: "_Oracle", rng: Noise) -> tuple[Tensor, Tensor]:
        """Return misclassified noise for each image, NaN if none was found, and the number of queries so far."""
        points = torch.full_like(x, torch.nan)
        spent = torch.ones(len(x), dtype=torch.int64, device=x.device)
        for attempt in range(min(self.tries, self.queries - 1)):
            if not len(rows):
                break
            noise = rng.rows(rows).split(f"try {attempt}").uniform(x[rows])
            is_wrong = oracle.is_wrong(noise, rows)
            points[rows[is_wrong]] = noise[is_wrong]
            spent[rows] += 1
            rows = rows[~is_wrong]
        return points, spent


@dataclass(frozen=True)
class _Oracle:
    """Queries of the predicted class, and computations with them.

    Args:
        labels: labels of all images; `rows` are the images of some points.
        limit: points in one pass.
    """

    model: nn.Module
    labels: Tensor
    limit: int

    def is_wrong(self, points: Tensor, rows: Tensor) -> Tensor:
        """Mask (m,) of the misclassified points (m, c, h, w)."""
        with torch.no_grad():
            classes = [self.model(part).argmax(1) for part in torch.split(points, self.limit)]
        return torch.cat(classes) != self.labels[rows]

    def drawn_to_boundary(self, points: Tensor, x: Tensor, rows: Tensor, threat: ThreatModel, halvings: int) -> Tensor:
        """Move misclassified points as close to x as possible by bisection."""
        nearest, low, high = points, torch.zeros_like(x[:, 0, 0, 0]), torch.ones_like(x[:, 0, 0, 0])
        for _ in range(halvings):
            middle = (low + high) / 2
            between = threat.shrunk(points, x, middle)
            is_wrong = self.is_wrong(between, rows)
            nearest = torch.where(per_example(is_wrong, x), between, nearest)
            low, high = torch.where(is_wrong, low, middle), torch.where(is_wrong, middle, high)
        return nearest

    def normal(
        self, points: Tensor, rows: Tensor, distance: Tensor, samples: int, threat: ThreatModel, rng: Noise
    ) -> Tensor:
        """Estimate the normal of the boundary towards misclassification; its length is arbitrary.

        Args:
            distance: (m,) distance of the queries from the points.
        """
        length = per_example(distance, points)[:, None]
        sums, signed, verdicts, left = torch.zeros_like(points), torch.zeros_like(points), 0 * distance, samples
        while left:
            count = min(left, _DRAWN)
            like = points[:, None].expand(-1, count, *points.shape[1:])
            drawn = 2 * rng.uniform(like) - 1 if threat.norm == "linf" else rng.normal(like)
            sizes = torch.linalg.vector_norm(drawn.flatten(2), dim=2).clamp_min(torch.finfo(drawn.dtype).tiny)
            near = (points[:, None] + length * drawn / per_example(sizes, drawn)).clamp_(0, 1)
            # The actual direction after clipping to [0, 1].
            directions = (near - points[:, None]) / length
            is_wrong = self.is_wrong(near.flatten(0, 1), rows.repeat_interleave(count)).view(-1, count)
            verdict = torch.where(is_wrong, 1.0, -1.0).to(points.dtype)
            sums += directions.sum(1)
            signed += (per_example(verdict, directions) * directions).sum(1)
            verdicts += verdict.sum(1)
            left -= count
        mean = per_example(verdicts / samples, points)
        # If all queries agree, subtracting their mean would leave nothing.
        return torch.where(mean.abs() == 1, signed, signed - mean * sums)

    def jumped(self, points: Tensor, rows: Tensor, direction: Tensor, jumps: Tensor) -> tuple[Tensor, Tensor]:
        """Move points by jumps (m,), halved until the end is misclassified; also return the number of queries (m,)."""
        ends, asked = points.clone(), torch.zeros_like(rows)
        open_ones = torch.arange(len(points), device=points.device)
        for _ in range(_HALVINGS):
            far = (points[open_ones] + per_example(jumps[open_ones], points) * direction[open_ones]).clamp_(0, 1)
            is_wrong = self.is_wrong(far, rows[open_ones])
            ends[open_ones[is_wrong]] = far[is_wrong]
            asked[open_ones] += 1
            open_ones, jumps = open_ones[~is_wrong], jumps / 2
            if not len(open_ones):
                break
        return ends, asked


def _bisections(x: Tensor, threat: ThreatModel) -> int:
    """Number of bisection steps for the precision of the paper."""
    return math.ceil((2 if threat.norm == "linf" else 1.5) * math.log2(x.shape[1:].numel()))
