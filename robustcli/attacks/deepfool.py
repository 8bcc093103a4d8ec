"""DeepFool: straight to the nearest boundary, for every norm."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustcli.attacks import ATTACKS, Attack
from robustcli.attacks.boundary import nearest_plane, rivals_of
from robustcli.attacks.losses import labels_of
from robustcli.registry.types import Count, NonNegative
from robustcli.threat.hyperplane import towards_plane
from robustcli.threat.noise import Noise
from robustcli.threat.threat import ThreatModel


@ATTACKS.register("deepfool", passes=(52, 500, 0), smoke={"steps": 5, "targets": 1})
@dataclass(frozen=True, kw_only=True)
class DeepFool(Attack):
    """Minimum-norm attack: step to the nearest of the planes that boundaries are to first order, until misclassified.

    Quick, and it does not come back towards the image: the point found is near, not nearest (see fab). The
    radius steers nothing: an image is broken when its point lies inside the threat set, and one that is not
    is returned as it is. Steps are the shortest that stay in the pixel box; the paper knows no box. The
    overshoot is a share of the whole way and not of one step, so that a path which creeps up to a boundary
    crosses it all the same. No noise is drawn.

    When to use: for quick distances to the decision boundary; it is weaker than fab.

    First setting: the defaults; compare its distances with those of fab.

    Args:
        steps: steps at most; a step costs one gradient for each class aimed at and two forwards.
        overshoot: how far to go beyond the planes, as a share of the way from the image.
        targets: wrong classes whose planes are compared, the likeliest ones of the clean image; at most all
            that there are.

    Reference: Moosavi-Dezfooli, Fawzi and Frossard, DeepFool: a simple and accurate method to fool deep neural
        networks, CVPR 2016.
    """

    steps: Count = 50
    overshoot: NonNegative = 0.02
    targets: Count = 9

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        labels, found = labels_of(y), x.clone()
        with torch.no_grad():
            logits = model(x)
        rivals = rivals_of(logits, labels, self.targets)
        # What is wrong already has its nearest point.
        rows = (logits.argmax(1) == labels).nonzero().flatten()
        way = torch.zeros_like(x[rows])
        x_adv = x[rows]
        for _ in range(self.steps):
            if not len(rows):
                break
            gap, weight = nearest_plane(model, x_adv, labels[rows], rivals[rows], threat.norm)
            way = way + towards_plane(x_adv, gap, weight, threat.norm)
            x_adv = (x[rows] + (1 + self.overshoot) * way).clamp_(0, 1)
            with torch.no_grad():
                is_fooled = model(x_adv).argmax(1) != labels[rows]
            is_broken = is_fooled & (threat.size(x_adv - x[rows]) <= threat.radius)
            found[rows[is_broken]] = x_adv[is_broken]
            rows, way, x_adv = rows[~is_fooled], way[~is_fooled], x_adv[~is_fooled]
        return found
