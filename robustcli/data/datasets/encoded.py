"""A split of encoded images, decoded whenever they are read."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from robustcli.data.datasets import Source, TensorSplit
from robustcli.data.datasets.channel_statistics import channel_statistics
from robustcli.data.datasets.decoding import Pixels, decode
from robustcli.data.datasets.fixed_order import fixed_order

JPEG = (".jpg", ".jpeg")
# Images whose statistics stand for those of a data set that is too large to decode at once.
_STATISTICS_SIZE = 1000
# Files that one thread decodes before it asks for more.
_CHUNK = 8


class Files(Protocol):
    """Encoded images of one part of a data set, by number."""

    @property
    def names(self) -> Sequence[str]:
        """Names relative to the folder of the part, such as cat/1.jpg."""
        ...

    def read(self, number: int) -> bytes:
        """Return the contents of a file."""
        ...

    def length(self, number: int) -> int:
        """Return the size of a file in bytes."""
        ...

    def where(self, number: int) -> str:
        """Return the name of a file for messages."""
        ...

    def chosen(self, numbers: Sequence[int]) -> "Files":
        """Return some of the files, in this order."""
        ...


@dataclass(frozen=True)
class EncodedSplit:
    """A split whose images are decoded whenever they are read.

    Args:
        files: encoded images.
        labels: (n,) int64.
        size: height and width of the decoded images.
    """

    files: Files
    labels: Tensor
    size: int
    in_memory: bool = False

    @property
    def decoded_bytes(self) -> int:
        return len(self.labels) * 3 * self.size**2

    def read(self, index: Tensor) -> Tensor:
        images = torch.empty((len(index), 3, self.size, self.size), dtype=torch.uint8)
        pixels, numbers = images.numpy(), index.tolist()
        parts = [slice(start, start + _CHUNK) for start in range(0, len(numbers), _CHUNK)]
        if len(parts) == 1:
            self._fill(pixels, numbers)
            return images
        jobs = [_decoders().submit(self._fill, pixels[part], numbers[part]) for part in parts]
        try:
            for job in jobs:
                job.result()
        finally:
            for job in jobs:
                job.cancel()
        return images

    def fingerprint(self) -> bytes:
        """Return a digest of names and sizes of the files; the pixels are not read."""
        return fingerprint(self.size, self.files)

    def reordered(self, order: Tensor) -> "EncodedSplit":
        """Return the same images, or some of them, in another order."""
        return EncodedSplit(self.files.chosen(order.tolist()), self.labels[order], self.size)

    def decoded(self) -> TensorSplit:
        """Return all images in memory."""
        return TensorSplit(self.read(torch.arange(len(self.labels))), self.labels)

    def _fill(self, images: Pixels, numbers: Sequence[int]) -> None:
        for image, number in zip(images, numbers, strict=True):
            image[:] = decode(self.files.read(number), self.size, self.files.where(number))


def source_of(train: EncodedSplit, test: EncodedSplit, classes: Sequence[str], memory_mib: int) -> Source:
    """Return the source with these parts, decoded into memory if they fit.

    Args:
        memory_mib: most memory for decoded images, in MiB. If they need more, mean and std are those of the first 1,000
            train images in a fixed random order.
    """
    decode = decoder(train.files.names) or decoder(test.files.names)
    if train.decoded_bytes + test.decoded_bytes <= memory_mib * 2**20:
        held = train.decoded()
        mean, std = channel_statistics(held.images)
        return Source(held, test.decoded(), classes, mean, std, decode)
    sample = train.reordered(fixed_order(len(train.labels))[:_STATISTICS_SIZE])
    mean, std = channel_statistics(sample.decoded().images)
    return Source(train, test, classes, mean, std, decode)


def test_source_of(test: EncodedSplit, classes: Sequence[str]) -> Source:
    """Return the source of a test part, each image decoded when it is needed."""
    none = test.reordered(torch.arange(0))
    return Source(none, test, classes, (), (), decoder(test.files.names), is_whole=False)


def fingerprint(size: int, files: Files) -> bytes:
    """Return a digest of names and sizes of files, and of the size of the decoded images."""
    digest = hashlib.sha256(str(size).encode())
    for number, name in enumerate(files.names):
        digest.update(os.fsencode(f"{name}\0{files.length(number)}\n"))
    return digest.digest()


def decoder(names: Sequence[str]) -> str:
    """Return the decoding that changes pixels: "JPEG" if a name ends so, otherwise ""."""
    return "JPEG" if any(name.lower().endswith(JPEG) for name in names) else ""


@cache
def _decoders() -> ThreadPoolExecutor:
    """As many threads as this process may use processors, for all splits together."""
    return ThreadPoolExecutor(usable_processors(), thread_name_prefix="decode")


def usable_processors() -> int:
    """Return the number of processors that this process may use."""
    # Not everywhere is there an affinity.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
