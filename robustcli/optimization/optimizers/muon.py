"""Muon: momentum that changes every direction of a hidden weight at the same rate."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from robustcli.optimization.optimizers import OPTIMIZERS
from robustcli.registry.types import Count, Positive, ProperShare
from robustcli.runtime.uncompiled import without_compiler

# The quintic s -> a s + b s^3 + c s^5. Five times in a row, it takes every s from 0.005 to 1 to between 0.68 and 1.16.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_TIMES = 5
# Axes of the weights of linear layers, and of convolutions over two and three dimensions.
_AXES = (2, 4, 5)


@OPTIMIZERS.register("muon")
def muon(
    groups: list[dict[str, Any]],
    lr: float,
    *,
    momentum: ProperShare = 0.9,
    hidden_rate: Positive = 0.1,
    block: Count | None = None,
) -> Optimizer:
    """SGD with Nesterov momentum that makes the updates of hidden weights semi-orthogonal.

    Hidden weights are all weights with two, four or five axes, as in linear layers and convolutions, except the first
    and the last one, usually the stem and the classifier, and those that train.weight_decay_exclude spares. A
    convolution of shape (outputs, inputs, height, width) counts as a matrix with `outputs` rows. Each update U S V^T of
    such a matrix becomes U V^T, approximately. All other parameters are updated by SGD.

    The update of a hidden weight does not depend on the size of its gradient, so `hidden_rate` suits most networks.
    Its weight decay is decoupled: the weight shrinks by the rate times train.weight_decay per update, as under SGD.

    Args:
        momentum: weight of the past update.
        hidden_rate: rate of hidden weights, as a multiple of the rate of the others.
        block: largest number of rows that are made orthogonal to each other; null, as published, means all rows. On a
            CPU, blocks of 128 rows take less than half the time in a layer of 384 channels.

    Reference: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; here in fp32. Blocks:
        Khaled et al., "MuonBP: Faster Muon via Block-Periodic Orthogonalization", 2025, without the full updates.
    """
    return _Muon(groups, lr, momentum, hidden_rate, block)


class HiddenMuon(Optimizer):
    """See `muon`. Expects parameter groups in the order of the layers; only the first one has hidden weights."""

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, momentum: float, hidden_rate: float, block: int | None
    ) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})
        self._hidden_rate, self._block = hidden_rate, block

    def __getstate__(self) -> dict[str, Any]:
        # Copies need these too; torch copies only its own attributes.
        return {**super().__getstate__(), "_hidden_rate": self._hidden_rate, "_block": self._block}

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        matrices = [p for p in self.param_groups[0]["params"] if p.ndim in _AXES and p.requires_grad]
        hidden = set(matrices[1:-1])
        for group in self.param_groups:
            lr, decay = group["lr"], group["weight_decay"]
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                if weight in hidden:
                    alike[weight.shape].append(weight)
                else:
                    weight.sub_(lr * self._accelerated(weight, weight.grad + decay * weight, group["momentum"]))
            for weights in alike.values():
                moves = [self._accelerated(weight, weight.grad, group["momentum"]).flatten(1) for weight in weights]
                blocks = torch.split(torch.stack(moves), self._block or len(moves[0]), dim=1)
                for weight, move in zip(weights, torch.cat([*map(orthogonalized, blocks)], dim=1), strict=True):
                    rows, columns = move.shape
                    size = lr * self._hidden_rate * max(1.0, rows / columns) ** 0.5
                    weight.mul_(1 - lr * decay).sub_(size * move.view_as(weight))

    def _accelerated(self, weight: Tensor, gradient: Tensor | None, momentum: float) -> Tensor:
        """Add the gradient to the running sum and return Nesterov's step."""
        assert gradient is not None
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        past: Tensor = state["momentum_buffer"].mul_(momentum).add_(gradient)
        return gradient + momentum * past


_Muon = without_compiler(HiddenMuon)


def orthogonalized(matrices: Tensor) -> Tensor:
    """Return U V^T, approximately, for every matrix U S V^T of a batch (n, rows, columns); zeros stay zeros.

    The polynomial of every step is multiplied on the Gram matrix of the shorter side, which takes 0.4 of the time of
    applying each step to the whole matrix (128 x 1152, one thread of a CPU).
    """
    if matrices.shape[-2] > matrices.shape[-1]:
        return orthogonalized(matrices.transpose(-2, -1)).transpose(-2, -1)
    scaled = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    gram = scaled @ scaled.transpose(-2, -1)
    step = _factor(gram)
    product = step
    for _ in range(_TIMES - 1):
        gram = step @ gram @ step
        step = _factor(gram)
        product = step @ product
    orthogonal: Tensor = product @ scaled
    return orthogonal


def _factor(gram: Tensor) -> Tensor:
    """Return a + b G + c G^2, by which one step multiplies the matrices with Gram matrices G."""
    factor = torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C)
    factor.diagonal(dim1=-2, dim2=-1).add_(_A)
    return factor
