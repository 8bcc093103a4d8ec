"""Target classes of attacks, the most promising first."""

import torch
from torch import Tensor, nn

from robustcli.threat.threat import ThreatModel

# Number of most likely classes whose distance is computed.
_CANDIDATES = 9
# Dual norm: the norm of the gradient that gives the distance to a boundary in the norm of the threat model.
_DUAL = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}


def likely_classes(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """All wrong classes of clean images, by decreasing logits: (n, classes - 1)."""
    with torch.no_grad():
        return _likely(model(x), labels)


def nearest_classes(model: nn.Module, x: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
    """The most likely wrong classes of clean images, nearest boundary first: (n, 9), or all.

    If logits were linear around x, the boundary to class j would have the distance (z_y - z_j) / |g|, where g is the
    gradient of z_j - z_y, in the dual norm of the threat model.

    Reference: Melamed, Yehudai and Shamir, arXiv 2407.02240, 2024, with their Euclidean norm replaced by the dual one.
    """
    with torch.enable_grad():
        points = x.detach().clone().requires_grad_()
        logits = model(points)
        wrong = _likely(logits.detach(), labels)[:, :_CANDIDATES]
        own = logits.gather(1, labels[:, None]).squeeze(1)
        distances = []
        for place, classes in enumerate(wrong.T):
            behind = own - logits.gather(1, classes[:, None]).squeeze(1)
            is_last = place + 1 == wrong.shape[1]
            (grad,) = torch.autograd.grad(behind.sum(), points, retain_graph=not is_last)
            slope = torch.linalg.vector_norm(grad.flatten(1), ord=_DUAL[threat.norm], dim=1)
            distances.append(behind.detach() / slope.clamp_min(1e-12))
    return wrong.gather(1, torch.stack(distances, 1).argsort(1))


def _likely(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.scatter(1, labels[:, None], -torch.inf).argsort(1, descending=True)[:, :-1]
