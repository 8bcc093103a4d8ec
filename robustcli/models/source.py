"""Sources of external models: networks that `robust train` did not make."""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import nn

from robustcli.architectures import ImageShape
from robustcli.errors import RobustCliError
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


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Known facts about a network, which are the defaults of its evaluation.

    Args:
        plain_because: reason why the network most likely uses pixels in [0, 1] without normalization; None if
            unknown.
        size: side of the training images.
        images: training data set of the network.
        norm, eps: threat model of the training.
        preprocess: transformation of images that belongs to the network.
    """

    plain_because: str | None = None
    size: int | None = None
    images: str | None = None
    norm: str | None = None
    eps: str | None = None
    preprocess: MemberSpec | None = None


BRINGS_ITS_OWN = Facts(plain_because="it brings its own, if it needs one")


class ModelSource(Protocol):
    """A file, a function or a package that a network is loaded from.

    Args:
        name: name of the network, for titles and messages.
        facts: known facts; sources derive from this class, which knows none.
    """

    @property
    def name(self) -> str: ...

    @property
    def facts(self) -> Facts:
        return Facts()

    def load(self, shape: ImageShape, device: torch.device) -> LoadedNetwork:
        """Load the network for images of this shape.

        Raises:
            ClassesDiffer: its weights are for another number of classes.
        """
        ...


def load_with_own_classes(
    source: ModelSource, shape: ImageShape, device: torch.device, *, at_least: int = 0
) -> LoadedNetwork:
    """Load a network for images of this shape, with the number of classes of its weights.

    Raises:
        ClassesDiffer: its weights are for fewer than `at_least` classes.
    """
    try:
        return source.load(shape, device)
    except ClassesDiffer as error:
        if error.classes < at_least:
            raise
        return source.load(replace(shape, classes=error.classes), device)


class ClassesDiffer(RobustCliError):
    """Weights that fit except for the number of classes.

    Args:
        classes: number of classes in the file.
    """

    def __init__(self, message: str, classes: int) -> None:
        super().__init__(message)
        self.classes = classes


def reason(error: BaseException) -> str:
    """The last line of another program's error message, which is where TorchScript puts the cause."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
