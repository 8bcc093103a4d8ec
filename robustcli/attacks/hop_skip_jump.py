"""HopSkipJump: along the decision boundary towards the image, from only the decisions of the model."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from robustcli.attacks import ATTACKS, Attack
from robustcli.attacks.losses import labels_of
from robustcli.registry.types import Count
from robustcli.threat.noise import Noise
from robustcli.threat.threat import ThreatModel

# Directions of an image whose numbers are drawn together, whatever the batch: noise depends on the draw.
_DRAWN = 8
# How far from the first point of the boundary decisions are asked for, in length; later it follows the distance.
_FIRST_REACH = 0.1
# A step that ends on the right side is halved so often before it is given up.
_HALVINGS = 16


@ATTACKS.register("hop_skip_jump", passes=(5000, 0, 0), norms=("linf", "l2"), smoke={"queries": 200, "samples": 12})
@dataclass(frozen=True, kw_only=True)
class HopSkipJump(Attack):
    """Decision-based attack: find the boundary, estimate its normal there, jump outwards along it, and again.

    The search sees only which points are misclassified, so it needs neither gradients nor logits. It begins at
    a misclassified image of uniform noise; an image for which none is found is returned as it is. Bisection
    between a misclassified point and the image finds the boundary. Whether points near it are misclassified
    gives its normal: the mean of random directions that lead to the wrong side, less those that do not. The
    step along it is halved until it ends on the wrong side. The radius steers nothing: an image is broken when
    a misclassified point lies inside the threat set. Only in linf and l2.

    When to use: where only decisions of the network are known, or where its gradients are suspected to mislead.

    First setting: 5000 queries on some hundred images; it is slow.

    Args:
        queries: decisions that an image may ask for; it stops before the step that could take more.
        samples: directions for the first normal; for the t-th, sqrt(t) times as many.
        tries: images of noise among which a misclassified one is looked for.
        keep: "fooled": an image is searched until a misclassified point inside the threat set is found.
            "nearest": to the end, for the nearest one.

    Reference: Chen, Jordan and Wainwright, HopSkipJumpAttack: a query-efficient decision-based attack, IEEE S&P
        2020.
    """

    queries: Count = 5000
    samples: Count = 100
    tries: Count = 100
    keep: Literal["fooled", "nearest"] = "fooled"

    is_black_box = True

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        threat.require_norm("hop_skip_jump", "linf", "l2")
        oracle = _Oracle(model, labels_of(y), max(len(x), 1))
        found, reach = x.clone(), torch.full_like(x[:, 0, 0, 0], torch.inf)
        # What is wrong already has its nearest point.
        rows = (~oracle.is_wrong(x, torch.arange(len(x), device=x.device))).nonzero().flatten()
        halvings = _bisections(x, threat)
        points, spent = self._begin(x, rows, oracle, rng)
        # Noise that a model calls by the right name everywhere leaves nothing to start from.
        rows = rows[points.isfinite().flatten(1).all(1)[rows]]
        rows = rows[spent[rows] + halvings <= self.queries]
        away = threat.size(points - x)
        step = 0
        while len(rows):
            points[rows] = oracle.drawn_to_boundary(points[rows], x[rows], rows, threat, halvings)
            spent[rows] += halvings
            size = threat.size(points[rows] - x[rows])
            is_kept = (size <= threat.radius) & (size < reach[rows])
            found[rows[is_kept]], reach[rows[is_kept]] = points[rows[is_kept]], size[is_kept]
            step += 1
            samples = int(self.samples * math.sqrt(step))
            is_open = spent[rows] + samples + _HALVINGS + halvings <= self.queries
            if self.keep == "fooled":
                is_open &= reach[rows] > threat.radius
            rows, size = rows[is_open], size[is_open]
            if not len(rows):
                break
            # The paper's sqrt(d) theta in l2 and d theta in linf are both one over the number of coordinates.
            beside = torch.full_like(size, _FIRST_REACH) if step == 1 else away[rows] / x[0].numel()
            source = rng.rows(rows).split(f"step {step}")
            normal = oracle.normal(points[rows], rows, beside, samples, threat, source)
            jumps = size / math.sqrt(step)
            points[rows], asked = oracle.jumped(points[rows], rows, threat.ascent(normal, points[rows], 1.0), jumps)
            spent[rows] += samples + asked
            away[rows] = threat.size(points[rows] - x[rows])
        return found

    def _begin(self, x: Tensor, rows: Tensor, oracle: "_Oracle", rng: Noise) -> tuple[Tensor, Tensor]:
        """Misclassified noise for each image, NaN where none was found, and the decisions asked for so far."""
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
    """The decisions of a model, and what can be learnt from them.

    Args:
        labels: of all images; `rows` says which of them points belong to.
        limit: points in one pass.
    """

    model: nn.Module
    labels: Tensor
    limit: int

    def is_wrong(self, points: Tensor, rows: Tensor) -> Tensor:
        """Which points are misclassified: (m, c, h, w) -> bool (m,)."""
        with torch.no_grad():
            classes = [self.model(part).argmax(1) for part in torch.split(points, self.limit)]
        return torch.cat(classes) != self.labels[rows]

    def drawn_to_boundary(self, points: Tensor, x: Tensor, rows: Tensor, threat: ThreatModel, halvings: int) -> Tensor:
        """Misclassified points, moved as near to x as they stay so."""
        nearest, low, high = points, torch.zeros_like(x[:, 0, 0, 0]), torch.ones_like(x[:, 0, 0, 0])
        for _ in range(halvings):
            middle = (low + high) / 2
            between = threat.shrunk(points, x, middle)
            is_wrong = self.is_wrong(between, rows)
            nearest = torch.where(_wide(is_wrong, x), between, nearest)
            low, high = torch.where(is_wrong, low, middle), torch.where(is_wrong, middle, high)
        return nearest

    def normal(
        self, points: Tensor, rows: Tensor, beside: Tensor, samples: int, threat: ThreatModel, rng: Noise
    ) -> Tensor:
        """The normal of the boundary at its points, towards the wrong side; of no particular length.

        Args:
            beside: (m,) lengths of the steps to where decisions are asked for.
        """
        length = _wide(beside, points)[:, None]
        sums, signed, verdicts, left = torch.zeros_like(points), torch.zeros_like(points), 0 * beside, samples
        while left:
            count = min(left, _DRAWN)
            like = points[:, None].expand(-1, count, *points.shape[1:])
            drawn = 2 * rng.uniform(like) - 1 if threat.norm == "linf" else rng.normal(like)
            sizes = torch.linalg.vector_norm(drawn.flatten(2), dim=2).clamp_min(torch.finfo(drawn.dtype).tiny)
            near = (points[:, None] + length * drawn / _wide(sizes, drawn)).clamp_(0, 1)
            # What the box cut from a direction was not asked about.
            directions = (near - points[:, None]) / length
            is_wrong = self.is_wrong(near.flatten(0, 1), rows.repeat_interleave(count)).view(-1, count)
            verdict = torch.where(is_wrong, 1.0, -1.0).to(points.dtype)
            sums += directions.sum(1)
            signed += (_wide(verdict, directions) * directions).sum(1)
            verdicts += verdict.sum(1)
            left -= count
        mean = _wide(verdicts / samples, points)
        # Where all agree, nothing would be left after their mean is taken off.
        return torch.where(mean.abs() == 1, signed, signed - mean * sums)

    def jumped(self, points: Tensor, rows: Tensor, direction: Tensor, jumps: Tensor) -> tuple[Tensor, Tensor]:
        """Points moved by jumps (m,), halved until they end on the wrong side; and the decisions asked for (m,)."""
        ends, asked = points.clone(), torch.zeros_like(rows)
        open_ones = torch.arange(len(points), device=points.device)
        for _ in range(_HALVINGS):
            far = (points[open_ones] + _wide(jumps[open_ones], points) * direction[open_ones]).clamp_(0, 1)
            is_wrong = self.is_wrong(far, rows[open_ones])
            ends[open_ones[is_wrong]] = far[is_wrong]
            asked[open_ones] += 1
            open_ones, jumps = open_ones[~is_wrong], jumps / 2
            if not len(open_ones):
                break
        return ends, asked


def _bisections(x: Tensor, threat: ThreatModel) -> int:
    """Halvings of the way to an image that find the boundary as precisely as the paper does."""
    return math.ceil((2 if threat.norm == "linf" else 1.5) * math.log2(x[0].numel()))


def _wide(values: Tensor, like: Tensor) -> Tensor:
    return values.view(*values.shape, *[1] * (like.dim() - values.dim()))
