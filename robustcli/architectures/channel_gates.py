"""The channel gate of CIFS, which weights channels by their relevance for two classes, and its probes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.runtime.precision import scaled_like_logits

Mask = Literal["softmax", "scaled", "sigmoid", "tanh"]
# Sharpness of the softplus between the two layers of a probe.
_SHARPNESS = 5.0


class Probe(nn.Module):
    """Classifier of pooled features (n, c) -> logits (n, k): one linear layer, or two with a softplus between them.

    Args:
        hidden: units between the two layers; 0 makes one layer.
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
        """Return the gradient of the sum of two logits of each example, d(A_c1 + A_c2) / dv: (n, c).

        For means over pixels this is the sum of the gradient over the pixels. The closed form can be differentiated
        and needs no graph in evaluation.
        """
        of_both: Tensor = self.last.weight[pairs].sum(1)
        if self.first is None:
            return of_both
        slope: Tensor = (_SHARPNESS * self.first(v)).sigmoid()
        return (of_both * slope) @ self.first.weight


class ChannelGate(nn.Module):
    """Multiply channels by a mask m of their relevance for two classes: z -> z m.

    The classes are the two most likely ones of the probe. If `labels` are set, which is so only in training, they are
    the label and the second most likely class (which may be the label too).

    Args:
        detaches: no gradient flows from m to the features, only to the probe.
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
    """Return all channel gates in the order of their registration."""
    return [module for module in model.modules() if isinstance(module, ChannelGate)]


@contextmanager
def labeled(model: nn.Module, labels: Tensor) -> Iterator[None]:
    """Give the labels of the batch to the gates of a model inside the context."""
    gates = gates_of(model)
    for gate in gates:
        gate.labels = labels
    try:
        yield
    finally:
        for gate in gates:
            gate.labels = None


def with_probes(model: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the logits of one forward pass, and the logits of the probe of each gate."""
    probes: list[Tensor] = []

    def record(_probe: nn.Module, _inputs: tuple[Any, ...], logits: Tensor) -> None:
        probes.append(logits.float() if logits.dtype == torch.bfloat16 else scaled_like_logits(logits))

    hooks = [gate.probe.register_forward_hook(record) for gate in gates_of(model)]
    try:
        logits = model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return logits, probes
