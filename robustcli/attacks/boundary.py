"""Linearized decision boundaries: target classes of an image, and the nearest boundary."""

import torch
from torch import Tensor, nn

from robustcli.registry.types import Norm
from robustcli.threat.hyperplane import plane_distance
from robustcli.threat.threat import per_example


def rivals_of(logits: Tensor, labels: Tensor, count: int | None = None) -> Tensor:
    """The most likely wrong classes, in decreasing order: (n, m), with m at most all of them."""
    wrong = logits.scatter(1, labels[:, None], -torch.inf)
    most = logits.shape[1] - 1
    return wrong.topk(most if count is None else min(count, most), dim=1).indices


def nearest_plane(model: nn.Module, x_adv: Tensor, labels: Tensor, rivals: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """Linearized boundary between the label and the nearest rival (n, m): gap (n,) and normal of its plane.

    One forward, and one gradient for each rival.
    """
    x_adv = x_adv.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(x_adv)
        gaps = logits.gather(1, rivals) - logits.gather(1, labels[:, None])
        count = rivals.shape[1]
        gap = gaps[:, 0].detach()
        (weight,) = torch.autograd.grad(gaps[:, 0].sum(), x_adv, retain_graph=count > 1)
        for rival in range(1, count):
            # One at a time: all gradients together would need the memory of one batch per class.
            other = gaps[:, rival].detach()
            (slope,) = torch.autograd.grad(gaps[:, rival].sum(), x_adv, retain_graph=rival < count - 1)
            is_nearer = plane_distance(other, slope, norm) < plane_distance(gap, weight, norm)
            gap = torch.where(is_nearer, other, gap)
            weight = torch.where(per_example(is_nearer, slope), slope, weight)
    return gap, weight
