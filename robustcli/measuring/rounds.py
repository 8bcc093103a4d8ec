"""Rounds: everything that is compared runs in turn, so that what else happens on the machine hits all alike."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

# Rows that benches share: our own, once more for the noise, and the limit.
OURS, AGAIN, ALONE = "ours", "ours again", "its passes alone"
# A sample lasts at least so long, in seconds; shorter ones measure the clock.
_SAMPLE = 0.25


@dataclass(frozen=True)
class Spread:
    """Median, least and largest of what the rounds gave."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Stopwatch:
    """Seconds of a device.

    On a CPU those of the processor in this process, all threads together: other processes do not count. On a
    GPU those on the wall, after waiting for the device.
    """

    device: torch.device

    @property
    def name(self) -> str:
        return "cpu" if self.device.type == "cpu" else "wall"

    def now(self) -> float:
        if self.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()


Sample = Callable[[int], float]
"""Runs something so many times and returns its seconds per run."""


@dataclass(frozen=True)
class Timed:
    """Samples of a step in this process."""

    step: Callable[[], object]
    watch: Stopwatch

    def __call__(self, repeats: int) -> float:
        begun = self.watch.now()
        for _ in range(repeats):
            self.step()
        return (self.watch.now() - begun) / repeats


def measure(samples: Mapping[str, Sample], rounds: int) -> dict[str, list[float]]:
    """Seconds per run of everything, one number per round; the order turns round after every round.

    Each runs once before, unmeasured, and the first once more to find how often a sample repeats it.
    """
    for sample in samples.values():
        sample(1)
    names = list(samples)
    repeats = max(1, math.ceil(_SAMPLE / max(samples[names[0]](1), 1e-6)))
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            seconds[name].append(samples[name](repeats))
        names.reverse()
    return seconds


def speed(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Our speed as a multiple of theirs, round by round: above 1 is faster."""
    return Spread.of([their / our for our, their in zip(ours, theirs, strict=True)])


def to_others(seconds: Mapping[str, Sequence[float]], limit: str, peer: str) -> dict[str, dict[str, Any]]:
    """By name: its seconds as a multiple of the limit's, and its speed as a multiple of a peer's, round by round.

    Args:
        seconds: of every round.
        limit: name of the passes alone.
        peer: name of torchattacks' way as it comes; where it was not measured, nothing is compared with it.
    """
    return {
        name: {
            "over_limit": asdict(speed(seconds[limit], values)),
            "beside_torchattacks": asdict(speed(values, seconds[peer])) if peer in seconds else None,
        }
        for name, values in seconds.items()
    }


def beside(seconds: Mapping[str, Sequence[float]], ours: str, again: str) -> dict[str, dict[str, Any]]:
    """By name: our speed as a multiple of its, and the verdict.

    Args:
        seconds: of every round.
        ours, again: names of what is compared, which has neither, and of the same once more, which has no verdict.
    """
    same = speed(seconds[ours], seconds[again])
    found: dict[str, dict[str, Any]] = {}
    for name, theirs in seconds.items():
        ratio = speed(seconds[ours], theirs)
        found[name] = {
            "ratio": None if name == ours else asdict(ratio),
            "verdict": None if name in (ours, again) else verdict(ratio, same),
        }
    return found


def verdict(ratio: Spread, again: Spread) -> str:
    """ "faster" or "slower", if every round says so and by more than the same thing differs from itself.

    Args:
        ratio: our speed as a multiple of another.
        again: our speed as a multiple of our own, measured once more.
    """
    if ratio.low > max(1, again.high):
        return "faster"
    if ratio.high < min(1, again.low):
        return "slower"
    return "within the spread"
