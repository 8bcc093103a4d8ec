"""Square attack: random search that asks for logits only, for every norm."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from robustcli.attacks import ATTACKS, Attack
from robustcli.attacks.losses import labels_of, margin
from robustcli.attacks.square_tiles import first_points, numbers_per_proposal, proposed, window_side
from robustcli.registry.types import Count, Share
from robustcli.threat.noise import Noise
from robustcli.threat.threat import ThreatModel

# Windows shrink to half their area after these queries of 10,000.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_PLANNED = 10_000
# Queries whose random numbers are drawn together: a draw costs dozens of small operations whatever its size.
_DRAWN = 100


@ATTACKS.register("square", passes=(5001, 0, 0), smoke={"queries": 30})
@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Score-based attack without gradients: change a random window, keep the change if the margin falls.

    The search sees nothing but logits, so masked gradients do not hide adversarial examples from it. Windows
    shrink as the search goes on. Each image has windows of its own, anywhere on it; AutoAttack's code draws one
    window for all images of a batch, and none of its windows reaches the last row or column. An image leaves
    the batch once it is misclassified; of others the point with the smallest margin is returned.

    When to use: as the check without gradients that masking cannot deceive.

    First setting: 5000 queries, as in AutoAttack.

    Args:
        queries: proposals per try, one forward each; the start takes one more.
        p_init: share of the image that the first windows cover.
        schedule: "rescaled": windows shrink over the whole of `queries`, as the published schedule for 10,000
            does (the paper's code). "fixed": after as many queries as that schedule says, whatever the
            budget (AutoAttack's code, which so ends 5,000 queries with windows of p_init / 128).
        restarts: tries with other random numbers.

    Reference: Andriushchenko, Croce, Flammarion and Hein, ECCV 2020; l1: Croce and Hein, ICML 2021, appendix.
    """

    queries: Count = 5000
    p_init: Share = 0.8
    schedule: Literal["rescaled", "fixed"] = "rescaled"
    restarts: Count = 1

    is_black_box = True

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        labels, worst = labels_of(y), _Points.none(x)
        rows = torch.arange(len(x), device=x.device)
        for restart in range(self.restarts):
            noise = rng.rows(rows).split(f"restart {restart}")
            worst.see(rows, self._search(model, x[rows], labels[rows], threat, noise))
            rows = (~worst.is_fooled).nonzero().flatten()
            if not len(rows):
                break
        return worst.points

    def _search(self, model: nn.Module, x: Tensor, labels: Tensor, threat: ThreatModel, rng: Noise) -> "_Points":
        """One try: the point of the smallest margin of each image, or the first that is misclassified."""
        height, width = x.shape[-2:]
        drawn = numbers_per_proposal(threat.norm, x.shape[1])
        looks_every = _looks_every(x.device)
        found = best = _judged(model, first_points(x, threat, rng), labels)
        rows = torch.arange(len(x), device=x.device)
        for query in range(self.queries):
            if query % _DRAWN == 0:
                # In single precision whatever the images are: others would draw other windows.
                numbers = rng.uniform(torch.empty((len(rows), _DRAWN, drawn), device=x.device))
            if query % looks_every == 0 and bool(best.is_fooled.any()):
                found.see(rows, best)
                stays = ~best.is_fooled
                rows, x, labels, best = rows[stays], x[stays], labels[stays], best.rows(stays)
                numbers, rng = numbers[stays], rng.rows(stays)
                if not len(rows):
                    return found
            side = window_side(self._share(query), height, width, threat.norm)
            points = proposed(best.points, x, threat, numbers[:, query % _DRAWN], side)
            best = best.or_worse(_judged(model, points, labels))
        found.see(rows, best)
        return found

    def _share(self, query: int) -> float:
        """Share of the image that a window of this query covers."""
        planned = query * _PLANNED // self.queries if self.schedule == "rescaled" else query
        return float(self.p_init / 2 ** sum(planned > halving for halving in _HALVINGS))


@dataclass
class _Points:
    """A point of every image, how far a wrong class is ahead there (n,), and whether the model is fooled (n,)."""

    points: Tensor
    margins: Tensor
    is_fooled: Tensor

    @classmethod
    def none(cls, x: Tensor) -> "_Points":
        margins = torch.full((len(x),), -torch.inf, device=x.device, dtype=x.dtype)
        return cls(x.clone(), margins, torch.zeros(len(x), dtype=torch.bool, device=x.device))

    def rows(self, keep: Tensor) -> "_Points":
        return _Points(self.points[keep], self.margins[keep], self.is_fooled[keep])

    def or_worse(self, other: "_Points") -> "_Points":
        """The other's points where they are worse for the model; the first that fools it stays."""
        is_worse = ~self.is_fooled & (other.is_fooled | (other.margins > self.margins))
        return _Points(
            torch.where(is_worse[:, None, None, None], other.points, self.points),
            torch.where(is_worse, other.margins, self.margins),
            self.is_fooled | other.is_fooled,
        )

    def see(self, rows: Tensor, others: "_Points") -> None:
        """Take over others' points of some rows where they are worse for the model."""
        merged = self.rows(rows).or_worse(others)
        self.points[rows], self.margins[rows], self.is_fooled[rows] = merged.points, merged.margins, merged.is_fooled


def _looks_every(device: torch.device) -> int:
    """Queries between two looks at who is fooled: an accelerator has to be waited for."""
    return 1 if device.type == "cpu" else 10


def _judged(model: nn.Module, points: Tensor, labels: Tensor) -> _Points:
    with torch.no_grad():
        logits = model(points)
    return _Points(points, margin(logits, labels), logits.argmax(1) != labels)
