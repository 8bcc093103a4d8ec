"""Batches that adapt to memory: smaller after it runs out, larger while a GPU has much of it left."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

from robustcli.errors import EvaluationError
from robustcli.runtime.allocator import release_freed_memory
from robustcli.runtime.out_of_memory import is_out_of_memory

T = TypeVar("T")

# The batch size is doubled while a batch takes less than this share of a GPU's memory.
_IDLE = 0.4


@dataclass
class _Fit:
    """Batch size that fits into memory, as a multiple of the requested size, and whether to try larger ones."""

    factor: float
    may_grow: bool


# By network, then by kind of work, for this process.
_REMEMBERED: WeakKeyDictionary[nn.Module, dict[str, _Fit]] = WeakKeyDictionary()


class AdaptiveBatches:
    """Cuts images into batches that fit into memory, and remembers what fits from one attack to the next.

    A forward pass needs much less memory than a gradient, so the size is learned for each kind of work. A new kind
    starts with the requested size, or with less if another kind ran out of memory.

    Results do not depend on the batches (see threat/noise.py), so only the cost changes. A network that draws its own
    noise draws it per batch: its batches never grow, and after running out of memory it draws other numbers.

    Args:
        network: the size is remembered for this network, also for later evaluations in this process.
        is_random: whether the network draws noise.
    """

    def __init__(self, device: torch.device, network: nn.Module | None = None, *, is_random: bool = False) -> None:
        self._device = device
        self._is_random = is_random
        self._fits: dict[str, _Fit] = {}
        if network is not None and not is_random:
            self._fits = _REMEMBERED.setdefault(network, self._fits)
        self.least: int | None = None

    def map(self, count: int, asked: int | None, work: Callable[[slice, int], T], kind: str = "") -> Iterator[T]:
        """Yield what `work` returns for slices that cover 0..count, in order.

        Args:
            asked: batch size to start with; None is one batch of all images.
            work: called with a slice and the maximum number of points in one pass; called again with smaller ones
                after it ran out of memory.
            kind: name of the kind of work, such as the class of an attack.

        Raises:
            EvaluationError: a single image does not fit.
        """
        if asked is None:
            if count:
                yield work(slice(0, count), count)
            return
        begin, fit = 0, self._fit(kind)
        while begin < count:
            size = max(1, round(asked * fit.factor))
            part = slice(begin, min(begin + size, count))
            if fit.may_grow:
                torch.cuda.reset_peak_memory_stats(self._device)
            if self._device.type == "cpu":
                release_freed_memory()
            done = self._attempt(work, part, size)
            if done is None:
                # The last batch may be smaller, so only its actual size counts.
                self._halve(fit, min(size, part.stop - begin), asked)
                continue
            if fit.may_grow and part.stop - begin == size and _share_used(self._device) < _IDLE:
                fit.factor *= 2
            begin = part.stop
            yield done[0]

    def _fit(self, kind: str) -> _Fit:
        least = min((fit.factor for fit in self._fits.values()), default=1.0)
        may_grow = self._device.type == "cuda" and not self._is_random
        return self._fits.setdefault(kind, _Fit(min(1.0, least), may_grow))

    @staticmethod
    def _attempt(work: Callable[[slice, int], T], part: slice, size: int) -> tuple[T] | None:
        """Return what the work returns, or None if memory ran out.

        A separate function, because the traceback of an exception keeps the tensors that did not fit.
        """
        try:
            return (work(part, size),)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return None

    @property
    def warnings(self) -> tuple[str, ...]:
        """A warning for the result, if memory ran out."""
        if self.least is None:
            return ()
        price = "which changes the noise that the network draws" if self._is_random else "which costs only time"
        return (f"memory ran out; batches were cut to {self.least} images, {price}",)

    def _halve(self, fit: _Fit, tried: int, asked: int) -> None:
        if tried == 1:
            raise EvaluationError(f"out of memory on {self._device} with one image at a time")
        self.least = tried // 2
        fit.factor = self.least / asked
        fit.may_grow = False
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _share_used(device: torch.device) -> float:
    """The largest share of the GPU's memory available to this process in use since the peak was last reset.

    Memory that the allocator only caches does not count as used; memory of other processes is not available.
    """
    free, _ = torch.cuda.mem_get_info(device)
    return torch.cuda.max_memory_allocated(device) / (free + torch.cuda.memory_reserved(device))
