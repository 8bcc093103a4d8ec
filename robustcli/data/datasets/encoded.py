"""A split of encoded images, decoded at every read."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from robustcli.data.datasets import Crops, Source, TensorSplit
from robustcli.data.datasets.channel_statistics import channel_statistics
from robustcli.data.datasets.decoding import Pixels, decode
from robustcli.data.datasets.fixed_order import fixed_order

JPEG = (".jpg", ".jpeg")
# Number of images for the statistics of a data set that is too large to decode at once.
_STATISTICS_SIZE = 1000
# Pixels that one thread decodes per task, and smallest and largest number of files. Threads that decode small images
# wait for each other at every task.
_CHUNK_PIXELS, _LEAST, _MOST = 400_000, 8, 64


CropFrom = Literal["square", "whole"]


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
    """A split whose images are decoded at every read.

    Args:
        files: encoded images.
        labels: (n,) int64.
        size: height and width of the decoded images.
        draft: decode JPEG at a reduced size if that suffices.
    """

    files: Files
    labels: Tensor
    size: int
    draft: bool = False
    in_memory: ClassVar[bool] = False

    @property
    def decoded_bytes(self) -> int:
        return len(self.labels) * 3 * self.size**2

    def read(self, index: Tensor, crops: Crops | None = None) -> Tensor:
        """Return images, or random parts of them, by number: (m,) int64 -> (m, 3, size, size) uint8."""
        images = torch.empty((len(index), 3, self.size, self.size), dtype=torch.uint8)
        pixels, numbers = images.numpy(), index.tolist()
        chunk = max(_LEAST, min(_MOST, _CHUNK_PIXELS // self.size**2))
        parts = [slice(start, start + chunk) for start in range(0, len(numbers), chunk)]
        jobs = [
            decoders().submit(self._fill, pixels[part], numbers[part], None if crops is None else crops.part(part))
            for part in parts
        ]
        try:
            for job in jobs:
                job.result()
        finally:
            for job in jobs:
                job.cancel()
        return images

    def fingerprint(self) -> bytes:
        """Return a digest of names and sizes of the files; the pixels are not read."""
        return fingerprint(self.size, self.files, draft=self.draft)

    def reordered(self, order: Tensor) -> "EncodedSplit":
        """Return the same images, or some of them, in another order."""
        return replace(self, files=self.files.chosen(order.tolist()), labels=self.labels[order])

    def decoded(self) -> TensorSplit:
        """Return all images in memory."""
        return TensorSplit(self.read(torch.arange(len(self.labels))), self.labels)

    def _fill(self, images: Pixels, numbers: Sequence[int], crops: Crops | None) -> None:
        chances = [None] * len(numbers) if crops is None else crops.chance.tolist()
        smallest = 1.0 if crops is None else crops.smallest
        for image, number, chance in zip(images, numbers, chances, strict=True):
            data, where = self.files.read(number), self.files.where(number)
            image[:] = decode(data, self.size, where, chance=chance, smallest=smallest, draft=self.draft)


def source_of(
    train: EncodedSplit,
    test: EncodedSplit,
    classes: Sequence[str],
    memory_mib: int,
    crop_from: CropFrom = "square",
    *,
    draft: bool = False,
) -> Source:
    """Return the source with these parts, decoded into memory if they fit and crops are not cut from whole images.

    Args:
        memory_mib: maximum memory for decoded images, in MiB. If they need more, mean and std are those of the first
            train images in a fixed random order.
        crop_from: source of random resized crops of train images.
        draft: decode JPEG at a reduced size where that is enough.
    """
    train, test, cuts = replace(train, draft=draft), replace(test, draft=draft), crop_from == "whole"
    decode = _decoding(train) or _decoding(test)
    if not cuts and train.decoded_bytes + test.decoded_bytes <= memory_mib * 2**20:
        held = train.decoded()
        mean, std = channel_statistics(held.images)
        return Source(held, test.decoded(), classes, mean, std, decode)
    sample = train.reordered(fixed_order(len(train.labels))[:_STATISTICS_SIZE])
    mean, std = channel_statistics(sample.decoded().images)
    return Source(train, test, classes, mean, std, decode, cut=train.read if cuts else None)


def test_source_of(test: EncodedSplit, classes: Sequence[str], *, draft: bool) -> Source:
    """Return the source of a test part; each image is decoded when needed."""
    test = replace(test, draft=draft)
    none = test.reordered(torch.arange(0))
    return Source(none, test, classes, (), (), _decoding(test), is_whole=False)


def fingerprint(size: int, files: Files, *, draft: bool = False) -> bytes:
    """Return a digest of names and sizes of files, and of the size of the decoded images."""
    digest = hashlib.sha256(f"{size}{' draft' if draft else ''}".encode())
    for number, name in enumerate(files.names):
        digest.update(os.fsencode(f"{name}\0{files.length(number)}\n"))
    return digest.digest()


def decoder(names: Sequence[str]) -> str:
    """Return the lossy decoding: "JPEG" if a name has its suffix, otherwise ""."""
    return "JPEG" if any(name.lower().endswith(JPEG) for name in names) else ""


def _decoding(split: EncodedSplit) -> str:
    found = decoder(split.files.names)
    return f"{found}, at a reduced size" if found and split.draft else found


@cache
def decoders() -> ThreadPoolExecutor:
    """Return a thread pool with one thread per usable processor, for all splits together."""
    return ThreadPoolExecutor(usable_processors(), thread_name_prefix="decode")


def usable_processors() -> int:
    """Return the number of processors that this process may use."""
    # Some systems have no affinity.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
