"""Networks that `robust train` did not make, one source of them per file."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from robustcli.architectures import ImageShape


@dataclass(frozen=True, kw_only=True)
class Body:
    """A network, and what was learnt of it while it was made.

    Args:
        network: (n, c, h, w) -> logits, in eval mode, on the CPU or the device that it was asked for on.
        mean, std: of the normalisation that its weights were trained with, where they say so; else None.
        source: of mean and std, in words.
        notes: what a reader of its numbers must know.
    """

    network: nn.Module
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    source: str = ""
    notes: tuple[str, ...] = ()


class Origin(Protocol):
    """Where a network comes from.

    Args:
        name: of the network, for titles and messages.
        plain_because: why pixels go into it as they are; None where it expects them normalised.
        size: side of the images that it was made for, or None.
    """

    @property
    def name(self) -> str: ...

    @property
    def plain_because(self) -> str | None: ...

    @property
    def size(self) -> int | None: ...

    def body(self, shape: ImageShape, device: torch.device) -> Body:
        """The network for images of this shape."""
        ...


def reason(error: Exception) -> str:
    """What an error of another program says, in one line; the last, where TorchScript puts it."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
