"""Training on clean and adversarial images in a fixed proportion."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.attacks.pgd import Pgd
from robustcli.defenses import DEFENSES, Batch, StatelessLoss
from robustcli.defenses.min_max import MinMax
from robustcli.registry.types import AttackBn, Share, Start, Steps, StepSize


@dataclass(frozen=True, kw_only=True)
class MixedCrossEntropy(StatelessLoss):
    """share CE(f(x'), y) + (1 - share) CE(f(x), y), mean over the batch; a term of weight 0 is not computed."""

    share: float

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        if self.share == 1:
            return F.cross_entropy(model(batch.x_adv), batch.y)
        clean = F.cross_entropy(model(batch.x), batch.y)
        if self.share == 0:
            return clean
        return self.share * F.cross_entropy(model(batch.x_adv), batch.y) + (1 - self.share) * clean


@DEFENSES.register("half_half", smoke={"steps": 2}, passes=(12, 10, 2))
def half_half(
    *,
    share: Share = 0.5,
    steps: Steps = 10,
    step_size: StepSize = None,
    start: Start = "random",
    attack_bn: AttackBn = "eval",
) -> MinMax:
    """Cross-entropy on adversarial and on clean images, half and half by default.

    Batch statistics see the clean batch once and the adversarial batch once.

    When to use: to trade clean for robust accuracy with one number.

    First setting: share 0.5; pgd_at is share 1.

    Args:
        share: a, the weight of the adversarial images; 1 is PGD-AT, 0 is natural training.

    Reference: Goodfellow, Shlens and Szegedy, ICLR 2015 (with one step); with PGD, Kannan et al., 2018.
    """
    return MinMax(
        attack=Pgd(steps=steps, step_size=step_size, start=start),
        loss=MixedCrossEntropy(share=share),
        attack_bn=attack_bn,
    )
