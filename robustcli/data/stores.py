"""Storage of images during a run: on the device, or on the host and read ahead."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from robustcli.data.datasets import Crops, Split, TensorSplit
from robustcli.data.read_ahead import ReadAhead

# A split is stored on a GPU if it takes at most this share of its free memory.
GPU_SHARE = 0.25
# Images that are copied to a GPU at once.
_COPIED = 1024


@dataclass(frozen=True)
class Plan:
    """Images of an epoch, in order.

    Args:
        rows: numbers (n,) of the images in the store, int64 on the CPU.
        crops: random parts of the images to read instead.
    """

    rows: Tensor
    crops: Crops | None = None

    def batches(self, batch_size: int) -> "list[Plan]":
        """Return the plan of each batch; the last may be smaller."""
        crops = self.crops
        return [
            Plan(self.rows[part], None if crops is None else crops.part(part))
            for part in (slice(start, start + batch_size) for start in range(0, len(self.rows), batch_size))
        ]

    def is_same(self, other: "Plan") -> bool:
        """True if the same images, or the same parts of them, are read."""
        if not torch.equal(self.rows, other.rows) or (self.crops is None) != (other.crops is None):
            return False
        return self.crops is None or other.crops is None or torch.equal(self.crops.chance, other.crops.chance)


# Returns the plan of the next epoch, if there is one.
Next = Callable[[], Plan | None]


class Store(Protocol):
    """Images and labels of one part of a source; the labels are on the device or on the CPU."""

    @property
    def labels(self) -> Tensor: ...

    def batches(self, plan: Plan, batch_size: int, after: Next = lambda: None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of images in their stored type, and labels, on the device.

        Args:
            plan: images to read.
            batch_size: images in a batch.
            after: returns the next plan, which a store that reads ahead starts early.
        """
        ...

    def reader(self, rows: Tensor) -> Callable[[Tensor], Tensor]:
        """Return a function that returns images by position in `rows`, both int64 on the CPU, in their stored type.

        It may be called for an image several times, so images that need decoding are decoded into memory first.
        """
        ...


@dataclass(frozen=True)
class OnDevice:
    """Images and labels on the device, where a batch costs one gather.

    Args:
        images, labels: tensors on the device.
    """

    images: Tensor
    labels: Tensor

    def batches(self, plan: Plan, batch_size: int, after: Next = lambda: None) -> Iterator[tuple[Tensor, Tensor]]:
        # One copy for all rows, because a copy from pageable memory waits for the device.
        for chosen in batches_of(plan.rows.to(self.labels.device), batch_size):
            yield self.images.index_select(0, chosen), self.labels.index_select(0, chosen)

    def reader(self, rows: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda places: self.images.index_select(0, rows[places].to(self.images.device))


@dataclass(frozen=True)
class OnHost:
    """Images on the host, read ahead batch by batch and copied to the device.

    Args:
        split: split to read.
        device: device of the batches.
        workers: batches that are read ahead; 0: read in the caller.
        cut: reads parts of images.
    """

    split: Split
    device: torch.device
    workers: int
    cut: Callable[[Tensor, Crops], Tensor] | None = None

    @property
    def labels(self) -> Tensor:
        return self.split.labels

    @cached_property
    def _ahead(self) -> ReadAhead[Plan, tuple[Tensor, Tensor]]:
        return ReadAhead(self._read, Plan.is_same, self.workers)

    def batches(self, plan: Plan, batch_size: int, after: Next = lambda: None) -> Iterator[tuple[Tensor, Tensor]]:
        def following() -> list[Plan]:
            found = after()
            return [] if found is None else found.batches(batch_size)

        for images, labels in self._ahead.results(plan.batches(batch_size), following):
            yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)

    def reader(self, rows: Tensor) -> Callable[[Tensor], Tensor]:
        if self.split.in_memory:
            return lambda places: self.split.read(rows[places]).to(self.device)
        images = self.split.read(rows)
        held = store(TensorSplit(images, self.split.labels[rows]), self.device, self.workers)
        return held.reader(torch.arange(len(rows)))

    def _read(self, plan: Plan) -> tuple[Tensor, Tensor]:
        if plan.crops is None:
            images = self.split.read(plan.rows)
        else:
            assert self.cut is not None
            images = self.cut(plan.rows, plan.crops)
        labels = self.split.labels[plan.rows]
        if self.device.type == "cuda":
            # A copy from pinned memory does not wait for the device.
            return images.pin_memory(), labels.pin_memory()
        return images, labels


def store(
    split: Split, device: torch.device, workers: int, cut: Callable[[Tensor, Crops], Tensor] | None = None
) -> Store:
    """Store a split on the device if it is in memory and fits, otherwise on the host.

    Args:
        workers: batches that are read ahead from the host.
        cut: reads parts of images, which is done on the host.
    """
    if not split.in_memory or cut is not None:
        return OnHost(split, device, workers, cut)
    if device.type != "cuda":
        # Images in memory are already on the device, or are mapped from files and must not be copied.
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


def batches_of(rows: Tensor, batch_size: int) -> Sequence[Tensor]:
    """Return the rows of each batch; the last batch may be smaller, and no rows give no batch."""
    # torch.split would return one empty batch for no rows.
    return torch.split(rows, batch_size) if len(rows) else ()
