"""Sources of external models: networks that `robust train` did not make."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from robustcli.architectures import ImageShape
from robustcli.registry.registry import MemberSpec


@dataclass(frozen=True, kw_only=True)
class LoadedNetwork:
    """A network as its source loads it, without normalization before it.

    Args:
        network: (n, c, h, w) -> logits, in eval mode, on the CPU or on the requested device.
        mean, std: normalization in training, if the source knows it; else None.
        source: origin of mean and std, as text.
        notes: facts that a reader of its numbers must know.
    """

    network: nn.Module
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    source: str = ""
    notes: tuple[str, ...] = ()


class ModelSource(Protocol):
    """A file, a function or a package that a network is loaded from.

    Sources derive from this class, which gives the properties below `name` their defaults.

    Args:
        name: name of the network, for titles and messages.
        plain_because: reason why the network most likely uses pixels in [0, 1] without normalization; None if
            known.
        size: side of the training images, or None.
        images: training data set of the network, if known.
        norm, eps: threat model of the training, if known.
        preprocess: transformation of images that belongs to the network, if any.
    """

    @property
    def name(self) -> str: ...

    @property
    def plain_because(self) -> str | None:
        return None

    @property
    def size(self) -> int | None:
        return None

    @property
    def images(self) -> str | None:
        return None

    @property
    def norm(self) -> str | None:
        return None

    @property
    def eps(self) -> str | None:
        return None

    @property
    def preprocess(self) -> MemberSpec | None:
        return None

    def load(self, shape: ImageShape, device: torch.device) -> LoadedNetwork:
        """Load the network for images of this shape."""
        ...


def reason(error: BaseException) -> str:
    """The last line of another program's error message, which is where TorchScript puts the cause."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
