"""Move weights inside a context and restore them exactly."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def perturbed_weights(weights: Sequence[Tensor], by: Sequence[Tensor]) -> Iterator[None]:
    """Context in which the weights are w + v; afterwards, also after an error, v is removed and other changes stay."""
    with torch.no_grad():
        before = [w.clone() for w in weights]
        for w, v in zip(weights, by, strict=True):
            w.add_(v)
        perturbed = [w.clone() for w in weights]
    try:
        yield
    finally:
        # before + (now - perturbed) instead of now - v: exact if nothing changed the weights inside.
        with torch.no_grad():
            for w, w_before, w_perturbed in zip(weights, before, perturbed, strict=True):
                w.sub_(w_perturbed).add_(w_before)
