"""Dynamic adversarial training: attacks that converge better as training goes on."""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from robustcli.attacks import Attack
from robustcli.attacks.fosc_pgd import FoscPgd
from robustcli.attacks.losses import cross_entropy
from robustcli.defenses import DEFENSES, Batch, OuterLoss, StatelessLoss
from robustcli.defenses.min_max import AdversarialCrossEntropy, MinMax, StatelessCurriculum, adjusted
from robustcli.optimization.progress import Progress
from robustcli.registry.types import AttackBn, Count, NonNegative, Positive
from robustcli.threat.noise import Noise


@dataclass(frozen=True)
class SelfWeightedCrossEntropy(OuterLoss):
    """CE(f(x'), y); from the second epoch on, times its own current value, so the gradient is that of CE^2 / 2.

    The mean is over the batch.
    """

    def start(self, model: nn.Module, optimizer: Optimizer, rng: Noise) -> "RunningSelfWeighted":
        return RunningSelfWeighted()


class RunningSelfWeighted(StatelessLoss):
    """A SelfWeightedCrossEntropy; the progress of training decides whether it weights."""

    is_weighting = False

    def begin(self, batch: Batch, progress: Progress) -> None:
        self.is_weighting = progress.epoch >= 1

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = model(batch.x_adv)
        if not self.is_weighting:
            return F.cross_entropy(logits, batch.y)
        losses = cross_entropy(logits, batch.y)
        return (losses.detach() * losses).mean()


@dataclass(frozen=True, kw_only=True)
class FallingCriterion(StatelessCurriculum):
    """c_t = max(0, max_criterion (1 - t / until)) in epoch t = 0, 1, ..."""

    max_criterion: float
    until: int

    def attack(self, attack: Attack, progress: Progress) -> Attack:
        return adjusted(attack, criterion=max(0.0, self.max_criterion * (1 - int(progress.epoch) / self.until)))


@DEFENSES.register(
    "dynamic_at",
    sets="criterion",
    passes=(11, 10, 1),
    fewest=(3, 2, 1),
    measured="is measured at its most: on a CPU, images that have converged leave their batch",
    smoke={"steps": 3, "max_criterion": 0.15},
)
def dynamic_at(
    *,
    max_criterion: NonNegative = 0.5,
    until: Count = 100,
    self_weighted: bool = False,
    steps: Count = 10,
    step_size: Positive | None = None,
    center: Literal["clean", "start"] = "clean",
    attack_bn: AttackBn = "eval",
) -> MinMax:
    """Cross-entropy at adversarial images that have converged to a criterion, which falls during training.

    Early in training, PGD stops on an image at a high FOSC (first-order stationary condition), later at 0, which is
    plain PGD. The released code measures FOSC around the random start and weights every image by its own loss from the
    second epoch on; the paper does neither, and neither is the default. In the released code these weights need one
    more forward, in eval mode; here they come from the training forward. The released random start may leave [0, 1];
    here it stays inside. On a CPU with attack_bn "eval", an image that has stopped costs nothing.

    When to use: where strong examples early in training harm clean accuracy: it starts with weak ones.

    First setting: the defaults, with until at four fifths of the epochs, so that the last fifth trains on converged
    examples.

    Args:
        max_criterion: FOSC at which images stop in the first epoch; in the unit of one image's loss.
        until: epochs after which the criterion is 0; it falls linearly, epoch by epoch.
        self_weighted: whether each image's cross-entropy is weighted by its own value from the second epoch on, as in
            the released code.
        steps: gradient steps of the attack at most.
        step_size: length of one step in the unit of eps; null is a quarter of eps (as released).
        center: center of the ball of FOSC: the clean image, or the random start (as released).
        attack_bn: mode of the model while it is attacked: eval (as released, presumably), train or batch_no_update.

    Reference: Wang et al., ICML 2019, Algorithm 1; arXiv 2112.08304.
    """
    return MinMax(
        attack=FoscPgd(steps=steps, step_size=step_size, center=center, criterion=max_criterion),
        loss=SelfWeightedCrossEntropy() if self_weighted else AdversarialCrossEntropy(),
        attack_bn=attack_bn,
        curriculum=FallingCriterion(max_criterion=max_criterion, until=until),
    )
