"""DeepFool: straight to the nearest decision boundary, for every norm."""

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


@ATTACKS.register("deepfool", passes=(52, 500, 0), varies_in_passes=True, smoke={"steps": 5, "targets": 1})
@dataclass(frozen=True, kw_only=True)
class DeepFool(Attack):
    """Minimum-norm attack: step to the nearest linearized boundary until the image is misclassified.

    It is fast but does not move back towards the image, so the point found is near, not nearest (see fab). The search
    ignores the radius: an image is broken if its point lies inside the threat set; otherwise the clean image is
    returned. In contrast to the paper, steps are the shortest inside [0, 1]. The overshoot is a fraction of the whole
    way instead of one step, so that paths that approach a boundary slowly also cross it. No noise is drawn.

    When to use: for quick distances to the decision boundary; it is weaker than fab.

    First setting: the defaults; compare its distances with those of fab.

    Args:
        steps: maximum number of steps; a step costs one gradient per target class and two forwards.
        overshoot: how far to go beyond the planes, as a fraction of the way from the image.
        targets: number of wrong classes to compare, starting with the most likely ones of the clean image; at most
            all.

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
        # For a misclassified image, this is the nearest point.
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
