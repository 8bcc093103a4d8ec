"""Fast adaptive boundary attack: the nearest misclassified point, for every norm."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from robustcli.attacks import ATTACKS, BatchedAttack
from robustcli.attacks.best_so_far import NearestSoFar
from robustcli.attacks.boundary import nearest_plane, rivals_of
from robustcli.attacks.losses import labels_of, margin
from robustcli.registry.types import Count, Positive, Share, Size
from robustcli.threat.hyperplane import towards_plane
from robustcli.threat.noise import Noise
from robustcli.threat.threat import ThreatModel, per_example

# Share of the way to where the linearly interpolated margin is zero: slightly less, to stay misclassified.
_SHORT = 0.98
# Minimum length of a displacement when two are compared.
_TINY = 1e-8


@ATTACKS.register("fab", passes=(201, 900, 0), varies_in_passes=True, smoke={"steps": 10, "targets": 2})
@dataclass(frozen=True, kw_only=True)
class Fab(BatchedAttack):
    """Minimum-norm attack: move along the decision boundary towards the image.

    Each step goes slightly beyond the linearized boundary and towards its nearest point to the image; from a
    misclassified point it moves back towards the image. The search ignores the radius: an image is broken if a
    misclassified point lies inside the threat set; otherwise the clean image is returned. A step costs a forward, one
    gradient per joint target class, and a forward that classifies the new point. Without restarts no noise is drawn.

    When to use: for distances to the decision boundary, and as a check of attacks that maximize a loss.

    First setting: the defaults; fab_t for many classes.

    Args:
        steps: steps of one attempt.
        targets: 0 considers all wrong classes in each step and goes to the nearest of their planes, which costs one
            gradient per class. Otherwise try this many of the most likely wrong classes, at most all of them, one
            after the other with one gradient per step (FAB-T).
        restarts: attempts per target; the first starts at the image, the others at random points at half the radius
            (or half the distance of the best point found, if that is less).
        alpha_max: largest weight of the pull towards the image.
        eta: how far to go, as a multiple of the way to the plane; 1 ends on it.
        beta: share of the perturbation that is kept after a step that fooled the model.
        keep: "fooled": stop at a misclassified point inside the threat set. "nearest": search to the end for the
            nearest one.
        batch_size: points in one pass; if few images remain, several of their targets share a pass, with the same
            result. Null is the number of images.
        final_search: passes at the end of an attempt that move its nearest point along the line to the image as far as
            it stays misclassified. The paper uses 3, AutoAttack's code none.

    Reference: Croce and Hein, Minimally distorted adversarial examples with a fast adaptive boundary attack,
        ICML 2020; targeted form: Croce and Hein, Reliable evaluation of adversarial robustness, ICML 2020.
    """

    steps: Count = 100
    targets: Size = 0
    restarts: Count = 1
    alpha_max: Share = 0.1
    eta: Positive = 1.05
    beta: Share = 0.9
    keep: Literal["fooled", "nearest"] = "fooled"
    batch_size: Count | None = None
    final_search: Size = 0

    @property
    def side_by_side(self) -> int:
        """Number of points of one image that may be in one pass."""
        return max(1, self.targets)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        labels = labels_of(y)
        with torch.no_grad():
            logits = model(x)
        found = NearestSoFar.start(x)
        reach = found.distances
        # For a misclassified image, this is the nearest point.
        reach[logits.argmax(1) != labels] = 0
        for restart in range(self.restarts):
            start = x if restart == 0 else _beside(x, reach, threat, rng.split(f"restart {restart}"))
            waiting = self._rivals(logits, labels)
            while waiting:
                is_open = reach > (threat.radius if self.keep == "fooled" else 0)
                rows = is_open.nonzero().flatten()
                if not len(rows):
                    return found.points
                together = max(1, (self.batch_size or 1) // len(rows))
                targets, waiting = waiting[:together], waiting[together:]
                rivals = torch.cat([target[rows] for target in targets])
                several = rows.repeat(len(targets))
                turns = torch.arange(len(targets), device=x.device).repeat_interleave(len(rows))
                attempts = several, turns
                points, sizes = self._try(model, x[several], labels[several], rivals, start[several], attempts, threat)
                for part in torch.arange(len(several), device=x.device).chunk(len(targets)):
                    is_inside = sizes[part] <= threat.radius
                    if self.keep == "fooled":
                        is_inside &= reach[rows] > threat.radius
                    found.update(points[part], sizes[part], is_inside, rows)
        return found.points

    def _rivals(self, logits: Tensor, labels: Tensor) -> list[Tensor]:
        """Target classes of each attempt, (n, m) each, starting with the most likely."""
        likeliest = rivals_of(logits, labels)
        return list(likeliest[:, : self.targets, None].unbind(1)) if self.targets else [likeliest]

    def _try(
        self,
        model: nn.Module,
        x: Tensor,
        labels: Tensor,
        rivals: Tensor,
        start: Tensor,
        attempts: tuple[Tensor, Tensor],
        threat: ThreatModel,
    ) -> tuple[Tensor, Tensor]:
        """Return the nearest misclassified point of each row and its distance, infinite if there is none.

        Args:
            attempts: (n,) image of each row, and (n,) its turn; breaking an image ends its attempts of later turns.
        """
        images, turns = attempts
        # Indices, because several rows of one image meet in a minimum, which must not wait for the device.
        first_done = torch.full((int(images.max()) + 1,), len(x), device=x.device)
        nearest = NearestSoFar.start(x)
        sizes = nearest.distances
        rows, origin, x_adv = torch.arange(len(x), device=x.device), x, start
        for _ in range(self.steps):
            gap, weight = nearest_plane(model, x_adv, labels[rows], rivals[rows], threat.norm)
            x_adv = self._advance(x_adv, origin, gap, weight, threat)
            with torch.no_grad():
                is_fooled = model(x_adv).argmax(1) != labels[rows]
            nearest.update(x_adv, threat.size(x_adv - origin), is_fooled, rows)
            x_adv = torch.where(per_example(is_fooled, x), origin + self.beta * (x_adv - origin), x_adv)
            done = torch.where(sizes[rows] <= threat.radius, turns[rows], len(x))
            first_done.scatter_reduce_(0, images[rows], done, "amin")
            stays = turns[rows] < first_done[images[rows]]
            if self.keep == "fooled" and not bool(stays.all()):
                rows, origin, x_adv = rows[stays], origin[stays], x_adv[stays]
                if not len(rows):
                    break
        if not self.final_search:
            return nearest.points, sizes
        drawn = self._drawn_back(model, nearest.points, x, labels)
        return drawn, torch.where(sizes.isinf(), sizes, threat.size(drawn - x))

    def _advance(self, x_adv: Tensor, x: Tensor, gap: Tensor, weight: Tensor, threat: ThreatModel) -> Tensor:
        """Step beyond the plane, between its nearest points to x_adv and to x."""
        gap_at_x = gap + (weight * (x - x_adv)).flatten(1).sum(1)
        here = towards_plane(x_adv, gap, weight, threat.norm)
        there = towards_plane(x, gap_at_x, weight, threat.norm)
        near, far = threat.size(here).clamp_min(_TINY), threat.size(there).clamp_min(_TINY)
        alpha = per_example((near / (near + far)).clamp_max(self.alpha_max), x)
        return ((1 - alpha) * (x_adv + self.eta * here) + alpha * (x + self.eta * there)).clamp_(0, 1)

    def _drawn_back(self, model: nn.Module, wrong: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        """Move misclassified points towards x, almost to where the interpolated margin is zero."""
        right = x
        with torch.no_grad():
            above, below = margin(model(wrong), labels), margin(model(x), labels)
            for _ in range(self.final_search):
                share = _SHORT * above / (above - below).clamp_min(torch.finfo(x.dtype).tiny)
                middle = wrong + per_example(share.clamp(0, 1), x) * (right - wrong)
                logits = model(middle)
                is_fooled, between = logits.argmax(1) != labels, margin(logits, labels)
                pixels = per_example(is_fooled, x)
                wrong, above = torch.where(pixels, middle, wrong), torch.where(is_fooled, between, above)
                right, below = torch.where(pixels, right, middle), torch.where(is_fooled, below, between)
        return wrong


@ATTACKS.register("fab_t", passes=(1801, 900, 0), varies_in_passes=True, smoke={"steps": 10, "targets": 2})
def fab_t(
    *,
    steps: Count = 100,
    targets: Count = 9,
    keep: Literal["fooled", "nearest"] = "fooled",
    batch_size: Count | None = None,
) -> Fab:
    """Targeted FAB as in AutoAttack: one wrong class after the other, one gradient per step, no noise.

    When to use: for data sets with many classes: the cost per target does not depend on their number.

    First setting: the defaults, as in AutoAttack.

    Args:
        steps: steps per target class.
        targets: number of target classes, starting with the most likely; at most all.
        keep: "fooled": stop at a misclassified point inside the threat set. "nearest": search to the end.
        batch_size: points in one pass, of several targets if few images remain; null is the number of images.

    Reference: Croce and Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse
        parameter-free attacks, ICML 2020.
    """
    return Fab(steps=steps, targets=targets, keep=keep, batch_size=batch_size)


def _beside(x: Tensor, reach: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
    """Points in a random direction, at half of the radius or of `reach`, inside [0, 1]."""
    direction = 2 * rng.uniform(x) - 1 if threat.norm == "linf" else rng.normal(x)
    length = reach.clamp_max(threat.radius) / 2 / threat.size(direction).clamp_min(1e-12)
    return (x + per_example(length, x) * direction).clamp_(0, 1)
