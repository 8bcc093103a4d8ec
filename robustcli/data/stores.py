"""Where images lie while a run reads them: on the device, or beside it and read ahead."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from robustcli.data.datasets import Split, TensorSplit

# A split is held on a GPU when it takes less than this share of the memory that is free there.
GPU_SHARE = 0.25


class Store(Protocol):
    """All images and labels of one part of a source."""

    def batches(self, rows: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The images of `rows` (int64, on the CPU) as they are stored, and their labels, on the device."""
        ...


@dataclass(frozen=True)
class OnDevice:
    """Held where it is used, so that a batch costs one gather.

    Args:
        images, labels: on the device.
    """

    images: Tensor
    labels: Tensor

    def batches(self, rows: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        # All rows move at once: a copy from ordinary memory waits for the device.
        for chosen in batches_of(rows.to(self.labels.device), batch_size):
            yield self.images.index_select(0, chosen), self.labels.index_select(0, chosen)


@dataclass(frozen=True)
class OnHost:
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
        for images, labels in _ahead(self._read, batches_of(rows, batch_size), self.workers):
            yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)

    def _read(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = self.split.read(rows), self.split.labels[rows]
        if self.device.type == "cuda":
            # Only from pinned memory does the copy not wait for the device.
            return images.pin_memory(), labels.pin_memory()
        return images, labels


def store(split: Split, device: torch.device, workers: int) -> Store:
    """Hold a split on the device if it lies in memory, unless the device is a GPU that it would fill."""
    if not split.in_memory:
        return OnHost(split, device, workers)
    images = split.images if isinstance(split, TensorSplit) else split.read(torch.arange(len(split.labels)))
    if device.type == "cuda" and images.nbytes > GPU_SHARE * torch.cuda.mem_get_info(device)[0]:
        # One thread at least: it gathers the next batch while the device computes.
        return OnHost(TensorSplit(images, split.labels), device, max(workers, 1))
    return OnDevice(images.to(device), split.labels.to(device))


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


def batches_of(rows: Tensor, batch_size: int) -> Sequence[Tensor]:
    """The rows of each batch, the last one perhaps smaller; none of nothing."""
    # Of nothing, `split` would make one empty batch.
    return torch.split(rows, batch_size) if len(rows) else ()
