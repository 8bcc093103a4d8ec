"""Clip the norm of the whole gradient before every step of an optimizer."""

from typing import Any

from torch import nn
from torch.optim import Optimizer

# Default of an optimizer, so that copies of it have the limit; hooks are not copied.
_LIMIT = "grad_clip"


def clip_gradients(optimizer: Optimizer, network: nn.Module, limit: float) -> None:
    """Scale the gradients of a network down to a norm of at most `limit` before every step of its optimizer."""
    optimizer.defaults[_LIMIT] = limit

    def clip(*_: Any) -> None:
        nn.utils.clip_grad_norm_(network.parameters(), limit)

    optimizer.register_step_pre_hook(clip)


def clip_again(optimizer: Optimizer, network: nn.Module) -> None:
    """Clip the gradients of a copied network as those of the original, given the copy of its optimizer."""
    limit = optimizer.defaults.get(_LIMIT)
    if limit is not None:
        clip_gradients(optimizer, network, limit)
