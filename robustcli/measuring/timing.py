"""Time several things in turn, round by round, so that other load on the machine affects all alike."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

# Names of rows in all benches: our code, the same again for the noise, and the limit.
OURS, AGAIN, ALONE = "ours", "ours again", "its passes alone"
# Minimum duration of a sample in seconds; shorter ones are dominated by the clock.
_SAMPLE = 0.25


@dataclass(frozen=True)
class Spread:
    """Median, minimum and maximum over rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Stopwatch:
    """Clock for a device, in seconds.

    On a CPU it is the processor time of this process, all threads together, so other processes do not count. On a GPU
    it is the wall clock, after waiting for the device.
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


def wall(device: torch.device) -> float:
    """Return the wall clock in seconds, after waiting for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


Sample = Callable[[int], float]
"""Runs something n times and returns the seconds per run."""


@dataclass(frozen=True)
class Timed:
    """Sample of a step in this process."""

    step: Callable[[], object]
    watch: Stopwatch

    def __call__(self, repeats: int) -> float:
        start = self.watch.now()
        for _ in range(repeats):
            self.step()
        return (self.watch.now() - start) / repeats


def measure(samples: Mapping[str, Sample], rounds: int) -> dict[str, list[float]]:
    """Return the seconds per run of every sample, one number per round; the order is reversed after each round.

    Every sample runs once before without being timed, and the first one once more to choose the number of repeats.
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
    """Return our speed as a multiple of theirs, by rounds: above 1 is faster."""
    return Spread.of([their / our for our, their in zip(ours, theirs, strict=True)])


def to_others(seconds: Mapping[str, Sequence[float]], limit: str, peer: str) -> dict[str, dict[str, Any]]:
    """Return, by name, the time as a multiple of the limit and the speed as a multiple of torchattacks.

    Args:
        seconds: seconds of every round by name.
        limit: name of the limit, the passes by themselves.
        peer: name of torchattacks; None in the result if it was not measured.
    """
    return {
        name: {
            "over_limit": asdict(speed(seconds[limit], values)),
            "beside_torchattacks": asdict(speed(values, seconds[peer])) if peer in seconds else None,
        }
        for name, values in seconds.items()
    }


def compare(seconds: Mapping[str, Sequence[float]], ours: str, again: str) -> dict[str, dict[str, Any]]:
    """Return, by name, our speed as a multiple of its speed, and the verdict.

    Args:
        seconds: seconds of every round by name.
        ours: name of our code, which gets no ratio and no verdict.
        again: name of the repetition of our code, which gets no verdict.
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
    """Return "faster" or "slower" if this holds in every round and exceeds the spread of our own code.

    Args:
        ratio: our speed as a multiple of another.
        again: our speed as a multiple of its repetition.
    """
    if ratio.low > max(1, again.high):
        return "faster"
    if ratio.high < min(1, again.low):
        return "slower"
    return "within the spread"
