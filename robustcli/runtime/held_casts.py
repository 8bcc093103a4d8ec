"""Weights in 16 bits that are cast once for many passes."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class CastsWeights(nn.Module):
    """Base of networks whose passes run under autocast."""

    @property
    def cast_to(self) -> torch.dtype | None:
        """Type of convolutions and products; None if weights are not cast, or are cast by a compiled program."""
        raise NotImplementedError


@contextmanager
def casts_held(model: nn.Module) -> Iterator[None]:
    """Keep 16-bit copies of the weights of convolutions and linear layers under autocast, inside the context.

    The weights must not change inside. Autocast caches casts only for weights that need gradients, so during an attack,
    where weights need none, it would cast all of them in every pass. Results are bit-identical, and modules that read
    the weights see the original ones.
    """
    with ExitStack() as stack:
        for part in model.modules():
            if isinstance(part, CastsWeights) and part.cast_to is not None:
                for layer in part.modules():
                    stack.enter_context(_cast(layer, part.cast_to))
        yield


@contextmanager
def _cast(layer: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    # Exactly these classes, because subclasses may compute something else.
    weight = layer._parameters.get("weight") if type(layer) in (*_CONVOLUTIONS, nn.Linear) else None
    # A module with its own `forward` attribute is already cast, or was changed elsewhere.
    if weight is None or weight.dtype != torch.float32 or "forward" in vars(layer):
        yield
        return
    bias = layer._parameters.get("bias")
    copies = weight.detach().to(dtype), None if bias is None else bias.detach().to(dtype)
    call: Callable[..., Tensor] = layer._conv_forward if isinstance(layer, _CONVOLUTIONS) else F.linear
    vars(layer)["forward"] = partial(_with_copies, call, copies)
    try:
        yield
    finally:
        del vars(layer)["forward"]


def _with_copies(call: Callable[..., Tensor], copies: tuple[Tensor, Tensor | None], x: Tensor) -> Tensor:
    return call(x, *copies)
