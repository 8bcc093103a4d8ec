"""PyramidAT: clean images, and images perturbed at several resolutions, with the same dropout masks."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.attacks.matched_masks import masks_matched
from robustcli.attacks.pyramid import Pyramid
from robustcli.defenses import DEFENSES, Batch, StatelessLoss
from robustcli.defenses.min_max import MinMax
from robustcli.registry.types import AttackBn, NonNegative, Positive, Steps


@dataclass(frozen=True, kw_only=True)
class MatchedCrossEntropy(StatelessLoss):
    """CE(f_M(x), y) + adv_weight CE(f_M(x'), y), mean over the batch, with M the masks of dropout and depth.

    Args:
        masks: "same": both passes use one M; "rates": each draws its own, at equal rates.
    """

    adv_weight: float
    masks: Literal["same", "rates"]

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        with masks_matched(model, batch.x.device) if self.masks == "same" else nullcontext():
            loss = F.cross_entropy(model(batch.x), batch.y)
            if self.adv_weight:
                loss = loss + self.adv_weight * F.cross_entropy(model(batch.x_adv), batch.y)
        return loss


@DEFENSES.register(
    "pyramid_at",
    norms=("linf",),
    goes_farther=True,
    smoke={"steps": 2, "sides": [4, 1], "multipliers": [2, 1]},
    passes=(7, 5, 2),
)
def pyramid_at(
    *,
    adv_weight: NonNegative = 1.0,
    masks: Literal["same", "rates"] = "same",
    steps: Steps = 5,
    step_size: Positive | None = None,
    sides: tuple[int, ...] = (32, 16, 1),
    multipliers: tuple[float, ...] = (20.0, 10.0, 1.0),
    aim: Literal["random_class", "away"] = "random_class",
    clip: Positive | None = None,
    attack_bn: AttackBn = "train",
) -> MinMax:
    """Cross-entropy at the clean image plus that at an image perturbed at several resolutions.

    The goal is accuracy on clean and shifted images rather than worst-case robustness. By design, training images lie
    outside the threat set: each resolution moves by up to its multiplier times eps. The published eps of 6/255 and step
    of 1/255 are in pixels of [-1, 1], so here they are 3/255 and 0.5/255. The released attack computes one more
    gradient for its logs, which is omitted here. Batch statistics, if there are any, see the clean and the adversarial
    batch once each and, with attack_bn "train", every forward of the attack.

    When to use: for transformers on large images, where clean accuracy should not fall.

    First setting: the defaults on 224 pixels with the architecture vit.

    Args:
        adv_weight: lambda, the weight of the adversarial images; 0 is natural training.
        masks: "same": attack, clean and adversarial pass use the same masks of dropout and stochastic depth; "rates":
            the attack keeps one draw, each other pass draws its own, at equal rates. The released code redraws dropout
            and shares stochastic depth; the paper calls both matched.
        step_size: length of one step in the unit of eps; null is a quarter of eps; as published a sixth.
        sides: side of the cells of each resolution, in pixels; published for images of 224 pixels.
        multipliers: multiple of eps for each resolution.
        aim: target of the attack: a random class, as published, or away from the label.
        clip: clip the perturbation to this many times eps; null (as published) does not clip, 1 is the threat set.
        attack_bn: mode of the model while it is attacked: train (as released; other modes have no masks), eval or
            batch_no_update.

    Reference: Herrmann et al., "Pyramid Adversarial Training Improves ViT Performance", CVPR 2022.
    """
    return MinMax(
        attack=Pyramid(steps=steps, step_size=step_size, sides=sides, multipliers=multipliers, aim=aim, clip=clip),
        loss=MatchedCrossEntropy(adv_weight=adv_weight, masks=masks),
        attack_bn=attack_bn,
    )
