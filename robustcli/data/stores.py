"""Storage of images during a run: on the device, or on the host and read ahead."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from robustcli.data.datasets import Split, TensorSplit

# A split is stored on a GPU if it takes at most this share of its free memory.
GPU_SHARE = 0.25
# Images that are copied to a GPU at once.
_COPIED = 1024


class Store(Protocol):
    """Images and labels of one part of a source."""

    def batches(self, rows: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of images in their stored type, and labels, on the device; `rows` is int64 on the CPU."""
        ...


@dataclass(frozen=True)
class OnDevice:
    """Images and labels on the device, where a batch costs one gather.

    Args:
        images, labels: tensors on the device.
    """

    images: Tensor
    labels: Tensor

    def batches(self, rows: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        # One copy for all rows, because a copy from pageable memory waits for the device.
        for chosen in batches_of(rows.to(self.labels.device), batch_size):
            yield self.images.index_select(0, chosen), self.labels.index_select(0, chosen)


@dataclass(frozen=True)
class OnHost:
    """Images on the host, read ahead batch by batch and copied to the device.

    Args:
        split: split to read.
        device: device of the batches.
        workers: threads that read ahead; 0: read in the caller.
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
            # A copy from pinned memory does not wait for the device.
            return images.pin_memory(), labels.pin_memory()
        return images, labels


def store(split: Split, device: torch.device, workers: int) -> Store:
    """Store a split on the device if it is in memory and fits, otherwise on the host."""
    if not split.in_memory:
        return OnHost(split, device, workers)
    if device.type != "cuda":
        # Whatever is in memory is on the device already, or is mapped from files and must not be copied.
        if isinstance(split, TensorSplit):
            return OnDevice(split.images.to(device), split.labels.to(device))
        return OnHost(split, device, 0)
    count = len(split.labels)
    size = count * split.read(torch.tensor([0])).nbytes if count else 0
    if size > GPU_SHARE * torch.cuda.mem_get_info(device)[0]:
        # At least one thread, to gather the next batch while the device computes.
        return OnHost(split, device, max(workers, 1))
    return OnDevice(_on_device(split, device), split.labels.to(device))


def _on_device(split: Split, device: torch.device) -> Tensor:
    """Copy all images of a split to a device, a part at a time."""
    if isinstance(split, TensorSplit):
        return split.images.to(device)
    first = split.read(torch.arange(min(1, len(split.labels))))
    images = torch.empty((len(split.labels), *first.shape[1:]), dtype=first.dtype, device=device)
    for rows in batches_of(torch.arange(len(split.labels)), _COPIED):
        images[rows[0] : rows[-1] + 1] = split.read(rows).to(device)
    return images


def _ahead(
    read: Callable[[Tensor], tuple[Tensor, Tensor]], requests: Sequence[Tensor], workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the results of `read` in order, computed ahead by threads.

    Threads instead of processes, because decoders release the interpreter lock and errors keep their type.
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
        # If the caller stops early, running reads finish and waiting ones are cancelled.
        pool.shutdown(cancel_futures=True)


def batches_of(rows: Tensor, batch_size: int) -> Sequence[Tensor]:
    """Return the rows of each batch; the last batch may be smaller, and no rows give no batch."""
    # torch.split would return one empty batch for no rows.
    return torch.split(rows, batch_size) if len(rows) else ()
