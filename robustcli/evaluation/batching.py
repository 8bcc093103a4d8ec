"""How many images are worked on at once: what was asked for, fewer where memory runs out, more where it lies idle."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

from robustcli.errors import EvaluationError

T = TypeVar("T")

# A batch of twice the size is tried while one takes less than this share of a GPU's memory.
_IDLE = 0.4


@dataclass
class _Fit:
    """What has been found out about memory: how much fits of what is asked for, and whether more may be tried."""

    factor: float
    may_grow: bool


# Of the networks of this process.
_REMEMBERED: WeakKeyDictionary[nn.Module, _Fit] = WeakKeyDictionary()


class Portions:
    """Cuts images into batches that fit. What one attack has found out about memory holds for the next.

    Findings do not depend on how images are cut (see threat/noise.py), so this changes cost alone. A network that draws
    noise of its own draws it by the batch: there nothing grows, and where memory runs out the draws are others.

    Args:
        network: what one evaluation has found out about it holds for the next in this process, too.
        is_random: whether it draws noise.
    """

    def __init__(self, device: torch.device, network: nn.Module | None = None, *, is_random: bool = False) -> None:
        self._device = device
        self._is_random = is_random
        self._fit = _Fit(1.0, may_grow=device.type == "cuda" and not is_random)
        if network is not None and not is_random:
            self._fit = _REMEMBERED.setdefault(network, self._fit)
        self.least: int | None = None

    def of(self, count: int, asked: int | None, work: Callable[[slice, int], T]) -> Iterator[T]:
        """What `work` makes of slices that cover 0..count, in their order.

        Args:
            asked: images at once where nothing else is known; None is all, whatever memory there is.
            work: of a slice and the most points that may be in one pass. Called again, with fewer, after it ran out of
                memory.

        Raises:
            EvaluationError: one image alone does not fit.
        """
        if asked is None:
            if count:
                yield work(slice(0, count), count)
            return
        begin = 0
        while begin < count:
            size = max(1, round(asked * self._fit.factor))
            part = slice(begin, min(begin + size, count))
            if self._fit.may_grow:
                torch.cuda.reset_peak_memory_stats(self._device)
            try:
                done = work(part, size)
            except torch.OutOfMemoryError:
                # A small rest may run out too: what was tried counts, not what would have been allowed.
                self._halve(min(size, part.stop - begin), asked)
                continue
            if self._fit.may_grow and part.stop - begin == size and _share_used(self._device) < _IDLE:
                self._fit.factor *= 2
            begin = part.stop
            yield done

    @property
    def warnings(self) -> tuple[str, ...]:
        """For the reader of a result: that memory ran out."""
        if self.least is None:
            return ()
        price = "which changes the noise that the network draws" if self._is_random else "which costs time alone"
        return (f"memory ran out; batches were cut to {self.least} images, {price}",)

    def _halve(self, tried: int, asked: int) -> None:
        if tried == 1:
            raise EvaluationError(f"out of memory on {self._device} with one image at a time")
        self.least = tried // 2
        self._fit.factor = self.least / asked
        self._fit.may_grow = False
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _share_used(device: torch.device) -> float:
    """The share of a GPU's memory that was in use at most since the peak was last reset.

    In use, not held: what training has left in the allocator's store is free to take.
    """
    return torch.cuda.max_memory_allocated(device) / torch.cuda.get_device_properties(device).total_memory
