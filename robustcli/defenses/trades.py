"""TRADES: clean cross-entropy plus beta times the divergence that the worst point causes."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.attacks.crafting import statistics_held
from robustcli.attacks.losses import kl_divergence
from robustcli.attacks.pgd import Pgd
from robustcli.defenses import DEFENSES, Batch, StatelessLoss
from robustcli.defenses.min_max import MinMax
from robustcli.registry.types import AttackBn, NonNegative, Positive, Steps


@dataclass(frozen=True, kw_only=True)
class TradesLoss(StatelessLoss):
    """CE(f(x), y) + beta KL(p(x) || p(x')), mean over the batch."""

    beta: float
    clean_forwards: int
    detach_target: bool
    statistics: Literal["both", "adversarial"] = "both"

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        # Without adversarial images, statistics must come from the clean batch.
        is_held = self.statistics == "adversarial" and self.beta > 0
        with statistics_held(model) if is_held else nullcontext():
            logits = model(batch.x)
        natural = F.cross_entropy(logits, batch.y)
        if self.beta == 0:
            return natural
        logits_adv = model(batch.x_adv)
        if self.clean_forwards == 2:
            with statistics_held(model) if is_held else nullcontext():
                logits = model(batch.x)
        target = (logits.detach() if self.detach_target else logits).log_softmax(1)
        return natural + self.beta * kl_divergence(logits_adv, target).mean()


# Unlabeled images have class shares of 0, so their cross-entropy is 0; the divergence needs no label.
@DEFENSES.register("trades", spares_labels=True, smoke={"steps": 2}, passes=(13, 10, 2))
def trades(
    *,
    beta: NonNegative = 6.0,
    steps: Steps = 10,
    step_size: Positive | None = None,
    start_std: Positive = 0.001,
    clean_forwards: Literal[1, 2] = 1,
    detach_target: bool = False,
    statistics: Literal["both", "adversarial"] = "both",
    attack_bn: AttackBn = "eval",
) -> MinMax:
    """Clean cross-entropy plus beta times KL(p(x) || p(x')), with x' maximizing the same KL.

    The attack computes the clean prediction once; the released code repeats it in every step, which gives the same in
    eval mode. In the loss, the released code forwards the clean batch twice (clean, adversarial, clean), so batch
    statistics see it twice: `clean_forwards: 2` does the same, 1 saves a forward. The released code of TRADES-AWP uses
    another order (adversarial, clean, clean), which only changes the weighting of running statistics. Extra images
    without a label (-1) contribute only the divergence; the cross-entropy is still a mean over the whole batch.

    When to use: to trade clean for robust accuracy with one number, also together with awp or extra images.

    First setting: beta 6 with 10 steps; beta 5 with averaged weights and extra images.

    Args:
        beta: weight of the robust term (1 / lambda); 0 is natural training.
        step_size: length of one step in the unit of eps; null is a quarter of eps. The released training script uses
            0.007; the default of its loss function is 0.003.
        start_std: the attack starts at x plus this times normal noise, because the gradient at x is zero.
        clean_forwards: forwards of the clean batch in the loss, 2 as released, or 1.
        detach_target: whether p(x) in the robust term is held fixed; in the released code it is not.
        statistics: batches that update running statistics in the loss: both (as released), or only the adversarial
            one, as in the code of Gowal et al.; batch statistics normalize the clean batch in both cases.

    Reference: Zhang et al., ICML 2019, equation 5 and Algorithm 1.
    """
    return MinMax(
        attack=Pgd(steps=steps, step_size=step_size, start="gaussian", start_std=start_std, loss="kl"),
        loss=TradesLoss(beta=beta, clean_forwards=clean_forwards, detach_target=detach_target, statistics=statistics),
        attack_bn=attack_bn,
    )
