"""A source of images, split and ready for the device: what training and evaluation read from."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from robustcli import augmentation
from robustcli.architectures import ImageShape
from robustcli.augmentation import AugmentSettings
from robustcli.datasets import Source, Split, TensorSplit
from robustcli.datasets.fixed_order import fixed_order
from robustcli.errors import RobustCliError
from robustcli.noise import Noise

SplitName = Literal["train", "val", "test"]

# A split is held on a GPU when it takes less than this share of the memory that is free there.
_GPU_SHARE = 0.25
# Images read at once where the caller does not say.
_CHUNK = 256


@runtime_checkable
class Fingerprinted(Protocol):
    """A split that is too large to be read only for its digest, and can say what it is."""

    def fingerprint(self) -> bytes:
        """Bytes that differ when the images differ, as far as that shows without reading them."""
        ...


class _Store(Protocol):
    """All images and labels of one part of a source."""

    def batches(self, rows: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The images of `rows` (int64, on the CPU) as they are stored, and their labels, on the device."""
        ...


@dataclass(frozen=True)
class _OnDevice:
    """Held where it is used, so that a batch costs one gather.

    Args:
        images, labels: on the device.
    """

    images: Tensor
    labels: Tensor

    def batches(self, rows: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        # All rows move at once: a copy from ordinary memory waits for the device.
        for chosen in _batches_of(rows.to(self.labels.device), batch_size):
            yield self.images.index_select(0, chosen), self.labels.index_select(0, chosen)


@dataclass(frozen=True)
class _OnHost:
    """Read batch by batch, ahead of its use, and copied to the device.

    Args:
        split: where images are read from.
        device: where they go.
        workers: threads that read ahead; with 0 the caller reads.
    """

    split: Split
    device: torch.device
    workers: int

    def batches(self, rows: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in _ahead(self._read, _batches_of(rows, batch_size), self.workers):
            yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)

    def _read(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = self.split.read(rows), self.split.labels[rows]
        if self.device.type == "cuda":
            # Only from pinned memory does the copy not wait for the device.
            return images.pin_memory(), labels.pin_memory()
        return images, labels


@dataclass(frozen=True)
class _Part:
    """One split: which rows of a store belong to it, in its fixed order."""

    store: _Store
    rows: Tensor


class Data:
    """The splits of one source on one device; made by `prepare`.

    Args:
        shape: of one image, with the number of classes.
        mean, std: per channel, of pixels in [0, 1].
        classes: their names.
        decode: how files became pixels where that changes them; "" if exact.
        digest: SHA-256 over the shapes, labels and image bytes of the source's train and test part, before
            anything is cut from them. Of images that are read from files when needed, over labels, file
            names and file sizes instead.
    """

    def __init__(self, source: Source, parts: dict[SplitName, _Part], device: torch.device) -> None:
        self.shape = _shape(source)
        self.mean, self.std = source.mean, source.std
        self.classes: Sequence[str] = source.classes
        self.decode = source.decode
        self.digest = _digest(source)
        self._parts = parts
        # A tensor and not a number: CUDA divides by a number through its reciprocal, which is not exact.
        self._levels = torch.tensor(255.0, device=device)

    @property
    def sizes(self) -> dict[str, int]:
        """Images in train, val and test."""
        return {name: len(part.rows) for name, part in self._parts.items()}

    def steps_per_epoch(self, batch_size: int, drop_last: bool) -> int:
        """Batches that train_batches yields for one order."""
        count = len(self._train().rows)
        if drop_last and count < batch_size:
            raise RobustCliError(
                f"train.batch_size: {batch_size} is more than the {count} train images, and train.drop_last "
                f"leaves no batch; use at most {count}, or train.drop_last=false"
            )
        return count // batch_size if drop_last else -(-count // batch_size)

    def order(self, generator: torch.Generator) -> Tensor:
        """The train split shuffled for one epoch: (n,) int64 on the CPU, as is the generator."""
        return torch.randperm(len(self._train().rows), generator=generator)

    def train_batches(
        self,
        order: Tensor,
        batch_size: int,
        *,
        drop_last: bool,
        augment: AugmentSettings,
        rng: Noise,
        skip: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented images in [0, 1] and labels, batch by batch, on the device.

        Numbers are drawn from `rng` when a batch is asked for and never ahead, so that a run may be resumed
        between two batches from the state that `rng` has there.

        Args:
            order: of the train split, as `order` gives it.
            batch_size: images in a batch.
            drop_last: whether a last batch that is not full is left out.
            augment: what is done to each image.
            rng: source of noise on the device.
            skip: batches to leave out at the beginning, at no cost.
        """
        part = self._train()
        if drop_last:
            order = order[: len(order) - len(order) % batch_size]
        rows = part.rows[order[skip * batch_size :]]
        for images, labels in part.store.batches(rows, batch_size):
            yield self._pixels(augmentation.augment(images, augment, rng)), labels

    def evaluation(self, split: SplitName, count: int | None = None) -> tuple[Tensor, Tensor]:
        """The first `count` images of a split, or all, in its fixed order and unchanged, with their labels."""
        part = self._train() if split == "train" else self._parts[split]
        size = len(part.rows)
        if size == 0:
            hint = "set data.val_size" if split == "val" else f"the data set has no {split} part"
            raise RobustCliError(f"data: there are no {split} images; {hint}")
        if count is not None and not 1 <= count <= size:
            raise RobustCliError(f"data: {count} {split} images were asked for; there are {size}")
        batches = list(part.store.batches(part.rows[:count], _CHUNK))
        images = torch.cat([images for images, _ in batches])
        return self._pixels(images), torch.cat([labels for _, labels in batches])

    def clean_batches(self, batch_size: int) -> Iterator[Tensor]:
        """Train images without augmentation, in the same order every time."""
        part = self._train()
        for images, _ in part.store.batches(part.rows, batch_size):
            yield self._pixels(images)

    def _train(self) -> _Part:
        if len(self._parts["train"].rows) == 0:
            raise RobustCliError(
                "data: there are no train images, so this data set serves for evaluation only; "
                "use one that has a train part"
            )
        return self._parts["train"]

    def _pixels(self, images: Tensor) -> Tensor:
        return images.float() / self._levels if images.dtype == torch.uint8 else images


def prepare(source: Source, *, val_size: int, train_size: int | None, device: torch.device, workers: int) -> Data:
    """Cut validation images from train and put what fits on the device.

    The cut follows one fixed permutation, whatever the seed of the run: its first `val_size` images are for
    validation, those after them for training. Splits that lie in memory are held on the device, unless
    that is a GPU of whose free memory they would take more than a quarter.

    Args:
        source: the data set.
        val_size: train images set apart for validation.
        train_size: how many of the others are used; None is all.
        device: where batches are wanted.
        workers: threads that read images ahead when they are not held on the device; with 0 the caller reads.
    """
    total = len(source.train.labels)
    left = total - val_size
    if val_size > 0 and left < 1:
        raise RobustCliError(
            f"data.val_size: {val_size} of {total} train images leave none to train on; "
            + (f"use at most {total - 1}" if total > 1 else "use 0 to evaluate only")
        )
    if train_size is not None and train_size > left:
        rest = f" after {val_size} were set apart for validation" if val_size else ""
        raise RobustCliError(f"data.train_size: {train_size} is more than the {left} train images{rest}")
    order = fixed_order(total)
    train_end = total if train_size is None else val_size + train_size
    train = _store(source.train, device, workers)
    test = _store(source.test, device, workers)
    parts: dict[SplitName, _Part] = {
        "train": _Part(train, order[val_size:train_end]),
        "val": _Part(train, order[:val_size]),
        "test": _Part(test, torch.arange(len(source.test.labels))),
    }
    return Data(source, parts, device)


def _store(split: Split, device: torch.device, workers: int) -> _Store:
    if not split.in_memory:
        return _OnHost(split, device, workers)
    images = split.images if isinstance(split, TensorSplit) else split.read(torch.arange(len(split.labels)))
    if device.type == "cuda" and images.nbytes > _GPU_SHARE * torch.cuda.mem_get_info(device)[0]:
        # One thread at least: it gathers the next batch while the device computes.
        return _OnHost(TensorSplit(images, split.labels), device, max(workers, 1))
    return _OnDevice(images.to(device), split.labels.to(device))


def _ahead(
    read: Callable[[Tensor], tuple[Tensor, Tensor]], requests: Sequence[Tensor], workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Results of `read` in order, each begun by a thread before it is asked for.

    Threads and not processes: decoders let go of the interpreter's lock, and an error keeps its type.
    """
    if workers == 0:
        yield from map(read, requests)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="read")
    waiting: deque[Future[tuple[Tensor, Tensor]]] = deque()
    try:
        for request in requests:
            waiting.append(pool.submit(read, request))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        # Also when the caller stops early: what was begun ends, what was not is dropped.
        pool.shutdown(cancel_futures=True)


def _batches_of(rows: Tensor, batch_size: int) -> Sequence[Tensor]:
    # Of nothing, `split` would make one empty batch.
    return torch.split(rows, batch_size) if len(rows) else ()


def _shape(source: Source) -> ImageShape:
    split = source.train if len(source.train.labels) else source.test
    _, channels, height, width = split.read(torch.tensor([0])).shape
    return ImageShape(channels, height, width, classes=len(source.classes))


def _digest(source: Source) -> str:
    digest = hashlib.sha256(str(_shape(source)).encode())
    for split in (source.train, source.test):
        digest.update(split.labels.numpy().tobytes())
        if isinstance(split, Fingerprinted):
            digest.update(split.fingerprint())
            continue
        for rows in _batches_of(torch.arange(len(split.labels)), _CHUNK):
            digest.update(split.read(rows).numpy().tobytes())
    return digest.hexdigest()
