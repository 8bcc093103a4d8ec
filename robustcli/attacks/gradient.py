"""The gradient of a loss in the images."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustcli.attacks.losses import AttackLoss
from robustcli.errors import EvaluationError

Rows = Tensor | slice
"""Indices (m,) of some images of a batch, or a slice, which avoids copies."""


def picked(values: Tensor, rows: Rows) -> Tensor:
    """Some rows of values; on a CPU an index takes four times as long."""
    return values[rows] if isinstance(rows, slice) else values.index_select(0, rows)


def input_gradient(
    model: nn.Module, x_adv: Tensor, loss: AttackLoss, reference: Tensor, *, create_graph: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the score, score (n,) and logits (n, k) by one forward and one backward to the input.

    The scores are summed, so that gradients do not depend on the batch size. With `create_graph` the gradient can be
    differentiated in the weights.
    """
    x_adv = x_adv.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(x_adv)
        scores = loss.score(logits, reference)
        if not scores.requires_grad:
            raise EvaluationError("this network gives no gradient, but this attack or measurement needs one")
        (grad,) = torch.autograd.grad(scores.sum(), x_adv, create_graph=create_graph)
    return grad, scores.detach(), logits.detach()


def mean_input_gradient(
    model: nn.Module, x_adv: Tensor, loss: AttackLoss, reference: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Means of gradient and score over `count` passes, and the logits (n, count, k) of all of them."""
    passes = [input_gradient(model, x_adv, loss, reference) for _ in range(count)]
    grads, scores, logits = zip(*passes, strict=True)
    return _mean(grads), _mean(scores), torch.stack(logits, 1)


def mean_score(
    model: nn.Module, points: Tensor, loss: AttackLoss, reference: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Mean of the score over `count` forwards, and the logits (n, count, k) of all of them."""
    with torch.no_grad():
        logits = [model(points) for _ in range(count)]
    return _mean([loss.score(one, reference) for one in logits]), torch.stack(logits, 1)


def _mean(values: Sequence[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(tuple(values)).mean(0)


def is_fooled(logits: Tensor, labels: Tensor) -> Tensor:
    """Mask (n,) of the images that every pass misclassifies.

    Where logits vary, a point that fools a single pass often does not fool the majority of others.

    Args:
        logits: (n, passes, k).
        labels: (n,).
    """
    return (logits.argmax(2) != labels[:, None]).all(1)


@dataclass(frozen=True)
class Objective:
    """Objective of an attack: the loss of a model at the images of one batch.

    Args:
        reference: (n, ...) from `loss.refer`, one row per image.
        gradients: number of averaged gradients, for models whose logits vary.
    """

    model: nn.Module
    loss: AttackLoss
    reference: Tensor
    gradients: int = 1

    @classmethod
    def at(cls, model: nn.Module, x: Tensor, y: Tensor, loss: AttackLoss, *, gradients: int = 1) -> "Objective":
        """The objective for clean images x and labels y."""
        return cls(model, loss, loss.refer(model, x, y), gradients)

    def gradient(self, points: Tensor, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient, score (m,) and logits (m, passes, k) at points of some images."""
        return mean_input_gradient(self.model, points, self.loss, self.reference[rows], self.gradients)

    def score(self, points: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """Score (m,) and logits (m, passes, k) at points of some images, by one forward for each gradient of a step."""
        return mean_score(self.model, points, self.loss, self.reference[rows], self.gradients)
