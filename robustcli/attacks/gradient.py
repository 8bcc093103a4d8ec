"""The gradient of a loss in the images."""

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
    """The mean gradient of `count` passes; score and logits are those of the last pass."""
    total, scores, logits = input_gradient(model, x_adv, loss, reference)
    for _ in range(count - 1):
        grad, scores, logits = input_gradient(model, x_adv, loss, reference)
        total = total + grad
    return total if count == 1 else total / count, scores, logits


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
        """Gradient, score (m,) and logits (m, k) at points of some images."""
        return mean_input_gradient(self.model, points, self.loss, self.reference[rows], self.gradients)

    def score(self, points: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """Score (m,) and logits (m, k) at points of some images, by one forward."""
        with torch.no_grad():
            logits = self.model(points)
        return self.loss.score(logits, self.reference[rows]), logits
