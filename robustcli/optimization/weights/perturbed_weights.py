"""Move weights inside a context and restore them exactly."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def perturbed_weights(weights: Sequence[Tensor], by: Sequence[Tensor]) -> Iterator[None]:
    """Context in which the weights are w + v; afterwards, also after an error, v is removed and other changes stay.

    If any number in v is not finite, as after an overflow in fp16, the weights do not move; without waiting for the
    device.
    """
    with torch.no_grad():
        is_finite = torch.stack(torch._foreach_norm(list(by), torch.inf)).isfinite().all()
        before = [w.clone() for w in weights]
        for w, v in zip(weights, by, strict=True):
            w.add_(torch.where(is_finite, v, 0))
        perturbed = [w.clone() for w in weights]
    try:
        yield
    finally:
        # before + (now - perturbed) instead of now - v: exact if nothing changed the weights inside.
        with torch.no_grad():
            for w, w_before, w_perturbed in zip(weights, before, perturbed, strict=True):
                w.sub_(w_perturbed).add_(w_before)
