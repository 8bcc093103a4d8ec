"""Channels weighed by how much they speak for the classes that matter: the gate of CIFS, and its probes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Mask = Literal["softmax", "scaled", "sigmoid", "tanh"]
# Of the softplus between the layers of a probe that has two.
_SHARPNESS = 5.0


class Probe(nn.Module):
    """Pooled features (n, c) -> logits (n, k), by one linear layer, or by two with a softplus between them.

    Args:
        hidden: units between the two; 0 is one layer.
    """

    def __init__(self, channels: int, classes: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(channels, hidden) if hidden else None
        self.last = nn.Linear(hidden or channels, classes)

    def forward(self, v: Tensor) -> Tensor:
        if self.first is not None:
            v = F.softplus(self.first(v), beta=_SHARPNESS)
        logits: Tensor = self.last(v)
        return logits

    def relevance(self, v: Tensor, pairs: Tensor) -> Tensor:
        """d(A_c1 + A_c2) / dv, the gradient of two logits of each example, written out: (n, c).

        Of a mean over pixels it is the sum of the gradient over the pixels. Written out it can be differentiated
        like any other expression, and needs no graph where there is none.
        """
        of_both: Tensor = self.last.weight[pairs].sum(1)
        if self.first is None:
            return of_both
        slope: Tensor = (_SHARPNESS * self.first(v)).sigmoid()
        return (of_both * slope) @ self.first.weight


class ChannelGate(nn.Module):
    """z -> z m, with m the relevance of each channel for two classes, made into a mask.

    The classes are the two that the probe finds most likely; where `labels` are set, which is in training alone,
    they are the label and what the probe ranks second (which may be the label too).

    Args:
        detaches: whether m is a constant to the features: its gradient then reaches the probe alone.
    """

    def __init__(self, channels: int, classes: int, hidden: int, mask: Mask, detaches: bool) -> None:
        super().__init__()
        self.probe = Probe(channels, classes, hidden)
        self.mask = mask
        self.detaches = detaches
        self.labels: Tensor | None = None

    def forward(self, z: Tensor) -> Tensor:
        v = z.mean((2, 3))
        pairs = self.probe(v).topk(2, dim=1).indices
        if self.labels is not None:
            pairs = torch.stack((self.labels, pairs[:, 1]), 1)
        relevance = self.probe.relevance(v.detach() if self.detaches else v, pairs)
        return z * _masked(relevance, self.mask)[:, :, None, None]


def _masked(relevance: Tensor, mask: Mask) -> Tensor:
    if mask == "softmax":
        return relevance.softmax(1)
    if mask == "scaled":
        return relevance.softmax(1) * relevance.shape[1]
    if mask == "sigmoid":
        return relevance.sigmoid()
    return relevance.tanh().clamp_min(0)


def gates_of(model: nn.Module) -> list[ChannelGate]:
    """All channel gates, in the order in which they are registered."""
    return [module for module in model.modules() if isinstance(module, ChannelGate)]


@contextmanager
def labelled(model: nn.Module, labels: Tensor) -> Iterator[None]:
    """The gates of a model are told the labels of the batch inside."""
    gates = gates_of(model)
    for gate in gates:
        gate.labels = labels
    try:
        yield
    finally:
        for gate in gates:
            gate.labels = None


def with_probes(model: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """One forward: logits, and what the probe of each gate says; no probes where there are no gates."""
    said: list[Tensor] = []

    def hear(_probe: nn.Module, _inputs: tuple[Any, ...], logits: Tensor) -> None:
        said.append(logits.float() if logits.dtype == torch.bfloat16 else logits)

    hooks = [gate.probe.register_forward_hook(hear) for gate in gates_of(model)]
    try:
        logits = model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return logits, said
