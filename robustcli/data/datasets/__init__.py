"""The images: each file holds one source of them.

A member is a function of keyword-only settings that returns a `Source`. It raises RobustCliError with the
folder it looked in when files are missing. Splitting, augmentation and moving to the device are data/'s.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from robustcli.registry.registry import Registry

DATASETS = Registry("datasets")


class Split(Protocol):
    """Labelled images, read by number.

    Args:
        labels: (n,) int64, on the CPU.
        in_memory: whether `read` only indexes a tensor, so that the whole split may be held on the device.
    """

    @property
    def labels(self) -> Tensor: ...

    @property
    def in_memory(self) -> bool: ...

    def read(self, index: Tensor) -> Tensor:
        """Images by number: (m,) int64 -> (m, c, h, w), uint8 in 0..255 or float32 in [0, 1]."""
        ...


@dataclass(frozen=True)
class TensorSplit:
    """A split that lies in memory.

    Args:
        images: (n, c, h, w), uint8 in 0..255 or float32 in [0, 1].
        labels: (n,) int64.
    """

    images: Tensor
    labels: Tensor
    in_memory: bool = True

    def __post_init__(self) -> None:
        assert self.images.dim() == 4
        assert len(self.images) == len(self.labels)
        assert self.images.dtype in (torch.uint8, torch.float32)
        assert self.labels.dtype == torch.int64

    def read(self, index: Tensor) -> Tensor:
        return self.images[index]


@dataclass(frozen=True)
class Source:
    """A data set with its train and test parts.

    Args:
        train, test: the published parts; validation is cut from train elsewhere.
        classes: their names, in the order of the labels.
        mean: per channel, of pixels in [0, 1], for the network's first layer; empty where only the test part was read.
        std: per channel likewise.
        decode: how stored files became pixels, where that changes them (such as "JPEG"); "" if exact.
        classes_are_known: whether there are no other classes; False where labels alone tell, and the largest may be
            missing among them.
        is_whole: whether the train part was read too.
    """

    train: Split
    test: Split
    classes: Sequence[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    decode: str = ""
    classes_are_known: bool = True
    is_whole: bool = True


Loader = Callable[..., Source]

_TEST_READERS: dict[str, Loader] = {}


def reads_test(name: str) -> Callable[[Loader], Loader]:
    """Declare a function that reads only the test part of a data set, with the member's parameters.

    The source that it returns has an empty train part. Evaluations use it, so that a train part that is absent, damaged
    or of another size does not matter to them.
    """

    def add(reader: Loader) -> Loader:
        _TEST_READERS[name] = reader
        return reader

    return add


def test_reader(name: str) -> Loader | None:
    """The function that reads only the test part of a data set; None where only the whole can be read."""
    DATASETS.get(name)  # Its file is imported now.
    return _TEST_READERS.get(name)
