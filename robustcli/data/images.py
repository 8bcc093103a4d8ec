"""Images of an evaluation, kept in their stored form."""

import math
from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch
from torch import Tensor

from robustcli.runtime.allocator import release_freed_memory

# Maximum number of images in a chunk, and of bytes of their floats.
_CHUNK, _CHUNK_BYTES = 250, 64 * 2**20


class Images:
    """Images that become float32 in [0, 1] when indexed; a whole split is never converted at once.

    Indexing with a slice, a mask or numbers gives a tensor (m, c, h, w) on the device, as for a tensor of all images.

    Args:
        read: returns stored images by number: (m,) int64 on the CPU -> (m, c, h, w) on the device.
        pixels: converts stored images to float32 in [0, 1].
        numbers: (n,) int64 on the CPU, arguments of `read`.
        shape: channels, height and width.
        device: device of the images.
    """

    dtype = torch.float32

    def __init__(
        self,
        read: Callable[[Tensor], Tensor],
        pixels: Callable[[Tensor], Tensor],
        numbers: Tensor,
        shape: tuple[int, int, int],
        device: torch.device,
    ) -> None:
        self._read, self._pixels, self._numbers = read, pixels, numbers
        self.shape = torch.Size((len(numbers), *shape))
        self.device = device

    @classmethod
    def of(cls, x: "AnyImages") -> "Images":
        """Return images unchanged, or wrap a tensor (n, c, h, w)."""
        if isinstance(x, Images):
            return x
        numbers = torch.arange(len(x))
        channels, height, width = x.shape[1:]
        return cls(
            lambda chosen: x[chosen.to(x.device)], lambda chosen: chosen, numbers, (channels, height, width), x.device
        )

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        return self._pixels(self._read(self._numbers[_on_cpu(index)]))

    def subset(self, index: slice | Tensor) -> "Images":
        """Return some of the images without reading them."""
        _, channels, height, width = self.shape
        return Images(self._read, self._pixels, self._numbers[_on_cpu(index)], (channels, height, width), self.device)


AnyImages: TypeAlias = Tensor | Images
"""Images (n, c, h, w) that are indexed some at a time."""


def chunks_of(x: AnyImages) -> Iterator[Tensor]:
    """Yield all images, some at a time."""
    size = min(_CHUNK, max(1, _CHUNK_BYTES // (4 * math.prod(x.shape[1:]) or 1)))
    for start in range(0, len(x), size):
        if x.device.type == "cpu":
            release_freed_memory()
        yield x[start : start + size]


def _on_cpu(index: slice | Tensor) -> slice | Tensor:
    return index if isinstance(index, slice) else index.cpu()
