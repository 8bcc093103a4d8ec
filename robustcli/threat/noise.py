"""Sources of noise, derived from the seed.

Training seeds a stream anew for every update from (seed, purpose, update), so a resumed run needs no saved random
state. Evaluation draws by counter: the noise of an example depends only on (seed, purpose, draw, example), and not on
batch size, order or number of workers.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from robustcli.runtime import ranks


class Noise(Protocol):
    """Source of random numbers for attacks; shape, device and dtype follow `like` (n, c, h, w)."""

    def uniform(self, like: Tensor) -> Tensor:
        """Independent uniform numbers in [0, 1)."""
        ...

    def normal(self, like: Tensor) -> Tensor:
        """Independent standard normal numbers."""
        ...

    def rows(self, keep: Tensor) -> "Noise":
        """The same source for the examples that `keep` (mask or indices) selects."""
        ...

    def split(self, key: str) -> "Noise":
        """A separate source for one purpose, such as one restart of an attack."""
        ...


def derive(seed: int, *keys: str | int) -> int:
    """A seed for one purpose, independent of the seeds of others: 63 bits."""
    text = repr((seed, keys)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


@dataclass(frozen=True)
class StreamNoise:
    """Noise from a generator, one draw after the other.

    If several processes take slices of a batch, each draws for the whole batch and keeps its own rows.
    """

    generator: torch.Generator

    @classmethod
    def on(cls, device: torch.device) -> "StreamNoise":
        """A stream on a device; `reseed` it before use."""
        return cls(torch.Generator(device=device))

    def reseed(self, seed: int, *keys: str | int) -> "StreamNoise":
        """Start the stream of (seed, keys), independently of earlier draws."""
        self.generator.manual_seed(derive(seed, *keys))
        return self

    def uniform(self, like: Tensor) -> Tensor:
        # By shape, not rand_like, which fills in memory order, so that channels_last would change the values.
        return self._own(torch.rand, like)

    def normal(self, like: Tensor) -> Tensor:
        return self._own(torch.randn, like)

    def _own(self, draw: Callable[..., Tensor], like: Tensor) -> Tensor:
        shape = ranks.whole_shape(like)
        drawn = draw(shape, generator=self.generator, device=like.device, dtype=like.dtype)
        return drawn if shape == like.shape else ranks.own(drawn)

    def rows(self, keep: Tensor) -> "StreamNoise":
        return self

    def split(self, key: str) -> "StreamNoise":
        return self


# Multipliers and shifts of the SplitMix64 finalizer (Steele, Lea, Flood, OOPSLA 2014), as signed integers.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def _shift_right(bits: Tensor, places: int) -> Tensor:
    # Torch's >> on int64 copies the sign bit; the hash needs zeros there.
    return (bits >> places).bitwise_and_((1 << (64 - places)) - 1)


def _mix(bits: Tensor) -> Tensor:
    """A bijection of 64-bit integers whose output looks random (SplitMix64's finalizer).

    It works in place to save memory: at 8 bytes per pixel, copies are large.
    """
    bits.bitwise_xor_(_shift_right(bits, 30)).mul_(_MIX_1)
    bits.bitwise_xor_(_shift_right(bits, 27)).mul_(_MIX_2)
    return bits.bitwise_xor_(_shift_right(bits, 31))


class IndexedNoise:
    """Noise by counter: example i always sees the numbers of (seed, keys, draw, i).

    Args:
        seed: the evaluation's seed.
        index: (n,) int64, the number of each example in its data set.
        keys: purposes split off so far.
    """

    def __init__(self, seed: int, index: Tensor, keys: tuple[str, ...] = ()) -> None:
        self.seed = seed
        self.index = index
        self.keys = keys
        self.draws = 0

    def uniform(self, like: Tensor) -> Tensor:
        # 24 random bits: every value is exact in float32 and 1 is never reached.
        return _shift_right(self._bits(like), 40).to(like.dtype).div_(1 << 24)

    def normal(self, like: Tensor) -> Tensor:
        # Box-Muller; 1 - u lies in (0, 1], so the logarithm is finite.
        radius = (-2 * (1 - self.uniform(like)).log()).sqrt()
        return radius * (2 * math.pi * self.uniform(like)).cos()

    def rows(self, keep: Tensor) -> "IndexedNoise":
        chosen = IndexedNoise(self.seed, self.index[keep.to(self.index.device)], self.keys)
        chosen.draws = self.draws
        return chosen

    def split(self, key: str) -> "IndexedNoise":
        return IndexedNoise(self.seed, self.index, (*self.keys, key))

    def _bits(self, like: Tensor) -> Tensor:
        salt = derive(self.seed, *self.keys, self.draws)
        self.draws += 1
        example = _mix(self.index.to(like.device) * _GOLDEN + salt)
        pixel = torch.arange(math.prod(like.shape[1:]), device=like.device) * _GOLDEN
        return _mix(example[:, None] + pixel).view(like.shape)
