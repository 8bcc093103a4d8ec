"""Data sets; each file holds one source of images.

A member is a function with keyword-only settings that returns a `Source`. If files are missing, it raises
RobustCliError with the folder. A data set that declares `reads_test` can return its test part only, as a source with an
empty train part, because evaluations need no more. Splits, augmentation and copies to the device belong to data/.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from robustcli.registry.registry import Registry

DATASETS = Registry("datasets")

Part = Literal["all", "test"]
"""The positional argument of a data set with `reads_test`."""


@dataclass(frozen=True)
class Crops:
    """Random resized crops of some images, that are cut while the images are decoded.

    Args:
        chance: random numbers (n, 4) in [0, 1): share of the area, ratio of the sides, place across and down.
        smallest: smallest share of the area.
    """

    chance: Tensor
    smallest: float

    def part(self, rows: slice | Tensor) -> "Crops":
        """Return the crops of some of the images."""
        return Crops(self.chance[rows], self.smallest)


class Split(Protocol):
    """Labeled images, read by number.

    Args:
        labels: labels (n,), int64 on the CPU.
        in_memory: `read` only copies from a tensor or from files mapped into memory, so the whole split may be stored
            on a GPU.
    """

    @property
    def labels(self) -> Tensor: ...

    @property
    def in_memory(self) -> bool: ...

    def read(self, index: Tensor) -> Tensor:
        """Return images by number: (m,) int64 -> (m, c, h, w), uint8 in 0..255 or float32 in [0, 1]."""
        ...


@dataclass(frozen=True)
class TensorSplit:
    """A split in memory.

    Args:
        images: images (n, c, h, w), uint8 in 0..255 or float32 in [0, 1].
        labels: labels (n,), int64.
    """

    images: Tensor
    labels: Tensor
    in_memory: ClassVar[bool] = True

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
        train, test: published parts; `prepare` takes validation images from train.
        classes: names of the classes, in the order of the labels.
        mean: mean per channel of pixels in [0, 1], for the normalization; empty if only the test part was read.
        std: standard deviation per channel; empty if only the test part was read.
        decode: decoding of the files if it changes pixels, such as "JPEG"; "" if exact.
        classes_are_known: there are no other classes. False if they are inferred from labels, where classes may be
            missing.
        is_whole: the train part was read too.
        digest: digest of all images and labels, if it is stored with them; "" if it has to be computed.
        cut: reads random resized crops of train images by number, cut from whole images while these are decoded. None:
            crops are cut from the images that `train` reads, on the device.
    """

    train: Split
    test: Split
    classes: Sequence[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    decode: str = ""
    classes_are_known: bool = True
    is_whole: bool = True
    digest: str = ""
    cut: Callable[[Tensor, Crops], Tensor] | None = None
