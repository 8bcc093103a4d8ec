"""Logits in double precision that several tests of outer losses share, with NumPy's reading of the usual terms."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustcli.defenses import Batch

Array = NDArray[Any]

COUNT, CLASSES = 6, 5
_GENERATOR = torch.Generator().manual_seed(11)
# Logits of the clean and of the adversarial images: some right and some wrong.
Z = 2 * torch.randn(COUNT, CLASSES, generator=_GENERATOR, dtype=torch.float64)
Z_ADV = Z + torch.randn(COUNT, CLASSES, generator=_GENERATOR, dtype=torch.float64)
Y = torch.cat([Z[:3].argmax(1), Z[3:].argmin(1)])
SHARES = torch.rand(COUNT, CLASSES, generator=_GENERATOR, dtype=torch.float64)
SHARES = SHARES / SHARES.sum(1, keepdim=True)
ONE_HOT: Array = np.eye(CLASSES)[Y.numpy()]


def outer(loss: Callable[[nn.Module, Batch], Tensor], z: Tensor = Z, z_adv: Tensor = Z_ADV, y: Tensor = Y) -> Tensor:
    """An outer loss of a model whose images are its logits."""
    return loss(nn.Identity(), Batch(z, y, z_adv))


def gradients(loss: Callable[[nn.Module, Batch], Tensor]) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the loss with respect to clean and adversarial logits; None if it does not use them."""
    z, z_adv = Z.clone().requires_grad_(), Z_ADV.clone().requires_grad_()
    first, second = torch.autograd.grad(outer(loss, z, z_adv), (z, z_adv), allow_unused=True)
    return first, second


def has_the_gradient_of_finite_differences(loss: Callable[[nn.Module, Batch], Tensor]) -> bool:
    z, z_adv = Z.clone().requires_grad_(), Z_ADV.clone().requires_grad_()
    return torch.autograd.gradcheck(lambda a, b: outer(loss, a, b), (z, z_adv))


def softmax(z: Array) -> Array:
    powers = np.exp(z - z.max(1, keepdims=True))
    shares: Array = powers / powers.sum(1, keepdims=True)
    return shares


def ce(z: Array, q: Array) -> Array:
    """Cross-entropy of every example."""
    values: Array = -(q * np.log(softmax(z))).sum(1)
    return values


def kl(z: Array, z_adv: Array) -> Array:
    """KL(p || p') of every example."""
    p, p_adv = softmax(z), softmax(z_adv)
    values: Array = (p * (np.log(p) - np.log(p_adv))).sum(1)
    return values
