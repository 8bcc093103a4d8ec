"""Fast adaptive boundary attack: the nearest misclassified point, for every norm."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from robustcli.attacks import ATTACKS, Attack
from robustcli.attacks.boundary import nearest_plane, rivals_of
from robustcli.attacks.losses import labels_of, margin
from robustcli.registry.types import Count, Positive, Share, Size
from robustcli.threat.hyperplane import towards_plane
from robustcli.threat.noise import Noise
from robustcli.threat.threat import ThreatModel

# Share of the way to where the line between two margins crosses zero: a little short of it, on the wrong side.
_SHORT = 0.98
# A displacement counts as at least this long when two are compared.
_TINY = 1e-8


@ATTACKS.register("fab", passes=(201, 900, 0), smoke={"steps": 10, "targets": 2})
@dataclass(frozen=True, kw_only=True)
class Fab(Attack):
    """Minimum-norm attack: walk along the decision boundary towards the image.

    Each step takes the boundary for the hyperplane that it is to first order, goes a little beyond it, and is
    drawn to where that plane is nearest to the image; from a misclassified point it goes back towards the
    image. The radius of the threat set steers nothing: an image is broken when a misclassified point lies
    inside, and an image that is not is returned as it is. A step costs a forward, one gradient for every class
    aimed at together, and a forward that judges the new point. Without restarts no noise is drawn.

    When to use: for distances to the decision boundary, and as a check of attacks that raise a loss.

    First setting: the defaults; fab_t for many classes.

    Args:
        steps: steps of one try.
        targets: 0 aims at all wrong classes together and steps to the nearest of their planes, at the price
            of one gradient for each. Otherwise so many of the likeliest wrong classes, at most all that
            there are, are tried one after the other with one gradient per step (FAB-T).
        restarts: tries per target; the first begins at the image, others at random points half the radius
            (or half the distance of the best point found, if that is less) away from it.
        alpha_max: largest weight of the pull towards the image.
        eta: how far to go, in lengths of the way to the plane; 1 ends on it.
        beta: share of the perturbation that is kept after a step that fooled the model.
        keep: "fooled": an image is searched until a misclassified point inside the threat set is found.
            "nearest": to the end, for the nearest one.
        batch_size: points in one pass: where few images are open, several of their targets are tried side by side,
            with the same outcome. Null is as many as there are images.
        final_search: passes at the end of a try that move its nearest point along the line to the image, as
            far as it stays misclassified. The paper takes 3, AutoAttack's code none.

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
        """Points of one image that may go through the network together."""
        return max(1, self.targets)

    def limited(self, points: int, images: int) -> "Fab":
        if self.batch_size is None:
            return self
        # A limit below the images per call was chosen by the user, and is never raised.
        return replace(self, batch_size=points if self.batch_size >= images else min(self.batch_size, points))

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        labels = labels_of(y)
        with torch.no_grad():
            logits = model(x)
        found, reach = x.clone(), torch.full((len(x),), torch.inf, device=x.device, dtype=x.dtype)
        # What is wrong already has its nearest point.
        reach[logits.argmax(1) != labels] = 0
        for restart in range(self.restarts):
            start = x if restart == 0 else _beside(x, reach, threat, rng.split(f"restart {restart}"))
            waiting = self._rivals(logits, labels)
            while waiting:
                is_open = reach > (threat.radius if self.keep == "fooled" else 0)
                rows = is_open.nonzero().flatten()
                if not len(rows):
                    return found
                together = max(1, (self.batch_size or 1) // len(rows))
                targets, waiting = waiting[:together], waiting[together:]
                rivals = torch.cat([target[rows] for target in targets])
                several = rows.repeat(len(targets))
                points, sizes = self._try(model, x[several], labels[several], rivals, start[several], several, threat)
                for part in torch.arange(len(several), device=x.device).chunk(len(targets)):
                    is_kept = (sizes[part] <= threat.radius) & (sizes[part] < reach[rows])
                    found[rows[is_kept]], reach[rows[is_kept]] = points[part][is_kept], sizes[part][is_kept]
        return found

    def _rivals(self, logits: Tensor, labels: Tensor) -> list[Tensor]:
        """The wrong classes that each try aims at, (n, m) each, the likeliest first."""
        likeliest = rivals_of(logits, labels)
        return list(likeliest[:, : self.targets, None].unbind(1)) if self.targets else [likeliest]

    def _try(
        self,
        model: nn.Module,
        x: Tensor,
        labels: Tensor,
        rivals: Tensor,
        start: Tensor,
        images: Tensor,
        threat: ThreatModel,
    ) -> tuple[Tensor, Tensor]:
        """The nearest misclassified point of each row and its distance, infinite where there is none.

        Args:
            images: (n,) which image each row is of; what breaks an image ends all its tries.
        """
        # Numbers, because several rows of one image meet in a maximum, which the device finds without being asked.
        is_done = torch.zeros(int(images.max()) + 1, dtype=torch.uint8, device=x.device)
        nearest, sizes = x.clone(), torch.full((len(x),), torch.inf, device=x.device, dtype=x.dtype)
        rows, origin, x_adv = torch.arange(len(x), device=x.device), x, start
        for _ in range(self.steps):
            gap, weight = nearest_plane(model, x_adv, labels[rows], rivals[rows], threat.norm)
            x_adv = self._advance(x_adv, origin, gap, weight, threat)
            with torch.no_grad():
                is_fooled = model(x_adv).argmax(1) != labels[rows]
            size = threat.size(x_adv - origin)
            is_nearer = is_fooled & (size < sizes[rows])
            nearest[rows] = torch.where(_wide(is_nearer, x), x_adv, nearest[rows])
            sizes[rows] = torch.where(is_nearer, size, sizes[rows])
            x_adv = torch.where(_wide(is_fooled, x), origin + self.beta * (x_adv - origin), x_adv)
            is_done.scatter_reduce_(0, images[rows], (sizes[rows] <= threat.radius).to(torch.uint8), "amax")
            stays = is_done[images[rows]] == 0
            if self.keep == "fooled" and not bool(stays.all()):
                rows, origin, x_adv = rows[stays], origin[stays], x_adv[stays]
                if not len(rows):
                    break
        if self.final_search:
            nearest = self._drawn_back(model, nearest, x, labels)
            sizes = torch.where(sizes.isinf(), sizes, threat.size(nearest - x))
        return nearest, sizes

    def _advance(self, x_adv: Tensor, x: Tensor, gap: Tensor, weight: Tensor, threat: ThreatModel) -> Tensor:
        """Beyond the plane, between the nearest points of it from here and from the image."""
        gap_at_x = gap + (weight * (x - x_adv)).flatten(1).sum(1)
        here = towards_plane(x_adv, gap, weight, threat.norm)
        there = towards_plane(x, gap_at_x, weight, threat.norm)
        near, far = threat.size(here).clamp_min(_TINY), threat.size(there).clamp_min(_TINY)
        alpha = _wide((near / (near + far)).clamp_max(self.alpha_max), x)
        return ((1 - alpha) * (x_adv + self.eta * here) + alpha * (x + self.eta * there)).clamp_(0, 1)

    def _drawn_back(self, model: nn.Module, wrong: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        """Wrong points, moved along the line to x to nearly where the margin, interpolated, vanishes."""
        right = x
        with torch.no_grad():
            above, below = margin(model(wrong), labels), margin(model(x), labels)
            for _ in range(self.final_search):
                share = _SHORT * above / (above - below).clamp_min(torch.finfo(x.dtype).tiny)
                middle = wrong + _wide(share.clamp(0, 1), x) * (right - wrong)
                logits = model(middle)
                is_fooled, between = logits.argmax(1) != labels, margin(logits, labels)
                wrong, above = torch.where(_wide(is_fooled, x), middle, wrong), torch.where(is_fooled, between, above)
                right, below = torch.where(_wide(is_fooled, x), right, middle), torch.where(is_fooled, below, between)
        return wrong


@ATTACKS.register("fab_t", passes=(1801, 900, 0), smoke={"steps": 10, "targets": 2})
def fab_t(
    *,
    steps: Count = 100,
    targets: Count = 9,
    keep: Literal["fooled", "nearest"] = "fooled",
    batch_size: Count | None = None,
) -> Fab:
    """Targeted FAB, as AutoAttack runs it: one wrong class after the other, one gradient per step, no noise.

    When to use: where a data set has many classes: it costs the same for each target, whatever their number.

    First setting: the defaults, as in AutoAttack.

    Args:
        steps: steps of the try at one class.
        targets: how many of the likeliest wrong classes are tried, at most all that there are.
        keep: "fooled": until a misclassified point inside the threat set is found. "nearest": to the end.
        batch_size: points in one pass, of several targets where few images are open; null is as many as there are
            images.

    Reference: Croce and Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse
        parameter-free attacks, ICML 2020.
    """
    return Fab(steps=steps, targets=targets, keep=keep, batch_size=batch_size)


def _beside(x: Tensor, reach: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
    """Points in a random direction, half of the radius or of `reach` away, inside the box."""
    direction = 2 * rng.uniform(x) - 1 if threat.norm == "linf" else rng.normal(x)
    length = reach.clamp_max(threat.radius) / 2 / threat.size(direction).clamp_min(1e-12)
    return (x + _wide(length, x) * direction).clamp_(0, 1)


def _wide(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))
