"""Time several things in turn, round by round, so that other load on the machine affects all alike."""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from pydantic.dataclasses import dataclass as stored_dataclass

# Names of rows in all benches: our code, the same again for the noise, and the limit.
OURS, AGAIN, ALONE = "ours", "ours again", "its passes alone"
_Thing = TypeVar("_Thing")
# Minimum duration of a sample in seconds; shorter ones are dominated by the clock.
_SAMPLE = 0.25


@stored_dataclass(frozen=True)
class Spread:
    """Median, minimum and maximum over rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))

    def __mul__(self, factor: float) -> "Spread":
        return Spread(factor * self.median, factor * self.low, factor * self.high)

    def __str__(self) -> str:
        return f"{self:.2f}"

    def __format__(self, spec: str) -> str:
        """Format all three numbers alike; with two decimals by default."""
        spec = spec or ".2f"
        return f"{self.median:{spec}} ({self.range(spec)})"

    def range(self, spec: str) -> str:
        """Return the minimum and the maximum as text."""
        return f"{self.low:{spec}}-{self.high:{spec}}"


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
        return time.process_time() if self.device.type == "cpu" else wall(self.device)


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


def alternating(things: Iterable[_Thing], rounds: int) -> Iterator[Sequence[_Thing]]:
    """Yield the things of every round, in an order that is reversed after each one."""
    order = list(things)
    for _ in range(rounds):
        yield order
        order = order[::-1]


def measure(samples: Mapping[str, Sample], rounds: int) -> dict[str, list[float]]:
    """Return the seconds per run of every sample, one number per round; the order is reversed after each round.

    Every sample runs once before without being timed, and the first one once more to choose the number of repeats.
    """
    for sample in samples.values():
        sample(1)
    first = next(iter(samples.values()))
    repeats = max(1, math.ceil(_SAMPLE / max(first(1), 1e-6)))
    seconds: dict[str, list[float]] = {name: [] for name in samples}
    for names in alternating(samples, rounds):
        for name in names:
            seconds[name].append(samples[name](repeats))
    return seconds


def speed(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Return our speed as a multiple of theirs, by rounds: above 1 is faster."""
    return Spread.of([their / our for our, their in zip(ours, theirs, strict=True)])


@dataclass(frozen=True)
class Timings:
    """Seconds of every round by name, and our code compared with everything else.

    Args:
        ours: name of our code, which gets no ratio and no verdict. Its repetition, `AGAIN`, gets no verdict.
    """

    seconds: Mapping[str, Sequence[float]]
    ours: str = OURS

    def spread(self, name: str, units: float = 1) -> Spread:
        """Return the seconds over rounds, divided by a number of units such as images."""
        return Spread.of(self.seconds[name]) * (1 / units)

    def ratio(self, name: str) -> Spread | None:
        """Return our speed as a multiple of another."""
        return None if name == self.ours else speed(self.seconds[self.ours], self.seconds[name])

    def verdict(self, name: str) -> str | None:
        """Return the verdict on the ratio."""
        ratio, again = self.ratio(name), self.ratio(AGAIN)
        return None if ratio is None or again is None or name == AGAIN else verdict(ratio, again)

    def over(self, limit: str, name: str) -> Spread:
        """Return the time as a multiple of the limit's."""
        return speed(self.seconds[limit], self.seconds[name])

    def beside(self, peer: str, name: str) -> Spread | None:
        """Return the speed as a multiple of that of a peer; None if the peer was not measured."""
        return speed(self.seconds[name], self.seconds[peer]) if peer in self.seconds else None


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
