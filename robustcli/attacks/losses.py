"""Losses that attacks maximize: a reference is computed once per batch, then logits are scored against it.

The reference has one row per example, so that an attack can continue with a part of the batch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.errors import RobustCliError

LossName = Literal["ce", "kl", "squared", "margin", "probability_margin", "dlr"]


@dataclass(frozen=True)
class AttackLoss:
    """A loss per example that attacks maximize.

    Args:
        refer: (model, x, y) -> reference (n, ...), computed once per batch.
        score: (logits (n, k), reference) -> (n,); higher is worse for the model.
        rests_at_x: whether the gradient at the clean image is zero, so that an attack must start elsewhere.
    """

    refer: Callable[[nn.Module, Tensor, Tensor], Tensor]
    score: Callable[[Tensor, Tensor], Tensor]
    rests_at_x: bool = False


def labels_of(y: Tensor) -> Tensor:
    """Class labels (n,) of labels or of class shares (n, k)."""
    return y if y.dim() == 1 else y.argmax(1)


def shares_of(y: Tensor, like: Tensor) -> Tensor:
    """Class shares (n, k) of labels or of class shares, in the shape and type of logits or probabilities."""
    return F.one_hot(y, like.shape[1]).to(like.dtype) if y.dim() == 1 else y


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """CE(f(x'), y) per example; y may be labels (n,) or class shares (n, k)."""
    return F.cross_entropy(logits, y, reduction="none")


def kl_divergence(logits: Tensor, clean: Tensor) -> Tensor:
    """KL(p || p') per example, for log-probabilities `clean` of p and logits of p'."""
    return (clean.exp() * (clean - logits.log_softmax(1))).sum(1)


def squared_difference(logits: Tensor, clean: Tensor) -> Tensor:
    """|p' - p|^2 per example, for log-probabilities `clean` of p and logits of p'."""
    return (logits.softmax(1) - clean.exp()).square().sum(1)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Largest wrong logit minus the true one: positive exactly when misclassified.

    Reference: Carlini and Wagner, IEEE S&P 2017.
    """
    true = logits.gather(1, labels[:, None]).squeeze(1)
    # -inf instead of 0, which would exceed negative logits.
    return logits.scatter(1, labels[:, None], -torch.inf).amax(1) - true


def probability_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Largest wrong probability minus the true one.

    Its gradient vanishes where the network is certain, right or wrong, so steps favor images near the boundary of two
    likely classes.

    Reference: Xie et al., arXiv 2411.15210, 2024.
    """
    return margin(logits.softmax(1), labels)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Margin divided by the spread of the three largest logits: invariant to shifting and scaling logits.

    Reference: Croce and Hein, ICML 2020, section 4.
    """
    if logits.shape[1] < 3:
        raise RobustCliError(f"attack loss 'dlr' needs at least 3 classes, the model has {logits.shape[1]}")
    first, _, third = logits.topk(3, dim=1).values.unbind(1)
    return margin(logits, labels) / (first - third + 1e-12)


def targeted_dlr(logits: Tensor, pairs: Tensor) -> Tensor:
    """Lead of one wrong class, divided by the spread of the four largest logits.

    Args:
        logits: (n, k).
        pairs: (n, 2), the label and the target class.

    Reference: Croce and Hein, ICML 2020, section 4.
    """
    if logits.shape[1] < 4:
        raise RobustCliError(f"attack loss 'targeted_dlr' needs at least 4 classes, the model has {logits.shape[1]}")
    true, target = logits.gather(1, pairs).unbind(1)
    first, _, third, fourth = logits.topk(4, dim=1).values.unbind(1)
    return (target - true) / (first - (third + fourth) / 2 + 1e-12)


def _as_given(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return y


def _as_labels(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return labels_of(y)


def _clean_prediction(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).log_softmax(1)  # type: ignore[no-any-return]


LOSSES: Mapping[LossName, AttackLoss] = {
    "ce": AttackLoss(_as_given, cross_entropy),
    # Relative to the detached clean prediction; both have their minimum at x' = x.
    "kl": AttackLoss(_clean_prediction, kl_divergence, rests_at_x=True),
    "squared": AttackLoss(_clean_prediction, squared_difference, rests_at_x=True),
    "margin": AttackLoss(_as_labels, margin),
    "probability_margin": AttackLoss(_as_labels, probability_margin),
    "dlr": AttackLoss(_as_labels, dlr),
}
