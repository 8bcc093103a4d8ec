"""MART: boosted cross-entropy, and a divergence that counts more for misclassified clean images."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from robustcli.attacks.losses import cross_entropy, labels_of, shares_of
from robustcli.attacks.pgd import Pgd
from robustcli.defenses import DEFENSES, Batch, StatelessLoss, refuse_shares
from robustcli.defenses.min_max import MinMax
from robustcli.registry.types import AttackBn, NonNegative, Positive, StartStd, Steps

# Keeps the logarithms and the weight away from zero, as in the released code.
_RIVAL_CEILING, _FLOOR, _WEIGHT_CEILING = 1.0001, 1e-12, 1.0000001


@dataclass(frozen=True, kw_only=True)
class MartLoss(StatelessLoss):
    """BCE(p', y) + beta KL(p || p') (1 - p_y), mean over the batch; no factor is detached.

    BCE(p', y) = CE(p', y) - log(1 - p'_r), with r the likeliest class other than y.
    """

    beta: float
    soft_labels: Literal["refuse", "expected"] = "expected"

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        if self.soft_labels == "refuse":
            refuse_shares(batch, "mart")
        log_p = model(batch.x).log_softmax(1) if self.beta else None
        logits_adv = model(batch.x_adv)
        p_adv = logits_adv.softmax(1)
        rival = p_adv.scatter(1, labels_of(batch.y)[:, None], 0).amax(1)
        loss = cross_entropy(logits_adv, batch.y) - (_RIVAL_CEILING - rival + _FLOOR).log()
        if log_p is not None:
            p = log_p.exp()
            divergence = (p * (log_p - (p_adv + _FLOOR).log())).sum(1)
            loss = loss + self.beta * divergence * (_WEIGHT_CEILING - (shares_of(batch.y, p) * p).sum(1))
        mean: Tensor = loss.mean()
        return mean


@DEFENSES.register("mart", smoke={"steps": 2, "soft_labels": "expected"}, passes=(12, 10, 2))
def mart(
    *,
    beta: NonNegative = 6.0,
    soft_labels: Literal["refuse", "expected"] = "refuse",
    steps: Steps = 10,
    step_size: Positive | None = None,
    start_std: StartStd = 0.001,
    attack_bn: AttackBn = "eval",
) -> MinMax:
    """Boosted cross-entropy at the adversarial image plus beta times KL(p(x) || p(x')), weighted by 1 - p_y(x).

    The attack maximizes the cross-entropy, not the divergence. Batch statistics see the clean and the adversarial
    batch once each.

    When to use: as an alternative to TRADES that gives misclassified images more weight.

    First setting: beta 6 with a step schedule and a small weight decay, without soft labels.

    Args:
        beta: weight of the divergence: 6 for WideResNet-34-10, 5 for ResNet-18 in the released code; 0
            leaves the boosted cross-entropy and saves the clean forward.
        soft_labels: rule for mixed or smoothed labels, which the paper does not have: "refuse" them, or take the
            "expected" value over class shares q (our choice): the weight is 1 - sum q_c p_c, and r is any class but
            the likeliest of q.
        step_size: length of one step in the unit of eps; null is a quarter of eps; as released 0.007.

    Reference: Wang et al., ICLR 2020, section 3; constants from the released code.
    """
    return MinMax(
        attack=Pgd(steps=steps, step_size=step_size, start="gaussian", start_std=start_std, loss="ce"),
        loss=MartLoss(beta=beta, soft_labels=soft_labels),
        attack_bn=attack_bn,
    )
