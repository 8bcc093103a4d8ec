"""SCORE: the two terms of TRADES as squared errors between probabilities."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from robustcli.attacks.losses import shares_of
from robustcli.attacks.pgd import Pgd
from robustcli.defenses import DEFENSES, Batch, StatelessLoss
from robustcli.defenses.min_max import MinMax
from robustcli.registry.types import AttackBn, NonNegative, Steps, StepSize


@dataclass(frozen=True, kw_only=True)
class ScoreLoss(StatelessLoss):
    """max(0, |p(x) - q|^2 + beta max(0, |p(x') - p(x)|^2 - clip_robust) - clip_total), mean over the batch."""

    beta: float
    clip_robust: float
    clip_total: float

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        p = model(batch.x).softmax(1)
        loss = (p - shares_of(batch.y, p)).square().sum(1)
        if self.beta:
            robust = (model(batch.x_adv).softmax(1) - p).square().sum(1)
            loss = loss + self.beta * (robust - self.clip_robust).clamp_min(0)
        mean: Tensor = (loss - self.clip_total).clamp_min(0).mean()
        return mean


@DEFENSES.register("score", smoke={"steps": 2}, passes=(13, 10, 2))
def score(
    *,
    beta: NonNegative = 4.0,
    clip_robust: NonNegative = 0.0,
    clip_total: NonNegative = 0.0,
    steps: Steps = 10,
    step_size: StepSize = None,
    start: Literal["random", "gaussian"] = "random",
    attack_bn: AttackBn = "batch_no_update",
) -> MinMax:
    """Squared error of the clean probabilities plus beta times their squared distance to the adversarial ones.

    The attack maximizes this distance. p(x) is not detached; batch statistics see the clean and the adversarial batch
    once each. The authors' code for generated data starts at a random point, attacks with batch statistics and clips
    the distance (the defaults here); their code without generated data starts near x, attacks in eval mode and clips
    the loss of each image.

    When to use: with many generated images, where a squared distance keeps accuracy better than a divergence.

    First setting: beta 4 with extra images and averaged weights (ema); lower it to favor clean accuracy.

    Args:
        beta: weight of the distance, 3 to 4 with generated data and 6 without; 0 is natural training on
            squared errors.
        clip_robust: distance below which an image does not contribute to this term.
        clip_total: loss below which an image does not contribute at all; a probability of 1 - c with the rest spread
            evenly over k - 1 classes has loss c^2 k / (k - 1).
        start: start of the attack: a random point of the threat set, or x plus 0.001 times normal noise.

    Reference: Pang et al., ICML 2022, arXiv 2202.10103.
    """
    return MinMax(
        attack=Pgd(steps=steps, step_size=step_size, start=start, loss="squared"),
        loss=ScoreLoss(beta=beta, clip_robust=clip_robust, clip_total=clip_total),
        attack_bn=attack_bn,
    )
