"""Schedules that change with every update."""

import math
from dataclasses import dataclass

from robustcli.optimization.clock import Clock
from robustcli.optimization.schedules import SCHEDULES
from robustcli.registry.types import NonNegative, Share


@SCHEDULES.register("linear")
@dataclass(frozen=True, kw_only=True)
class Linear:
    """A straight line from the full rate to `end` at the end of the run.

    Args:
        end: share of the rate that is left at the end.

    Reference: none in particular.
    """

    end: Share = 0.0

    def __call__(self, clock: Clock) -> float:
        return 1 + (self.end - 1) * clock.progress


@SCHEDULES.register("cosine", smoke={"warmup": 2})
@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Half a cosine from the full rate to `final`, between a straight warm-up and a cool-down.

    Args:
        warmup: epochs of the warm-up; the cosine fills what warm-up and cool-down leave of the run.
        cooldown: epochs at the end with the final rate.
        initial: share of the full rate at the first update of a warm-up.
        final: share of the full rate at the end.

    Reference: Loshchilov and Hutter, ICLR 2017; with warm-up, Gowal et al., 2020 (10 of 400 epochs); with a cool-down,
        Debenedetti et al., SaTML 2023 (10 of 110 epochs).
    """

    warmup: NonNegative = 0.0
    cooldown: NonNegative = 0.0
    initial: Share = 0.0
    final: Share = 0.0

    def __call__(self, clock: Clock) -> float:
        if clock.epoch < self.warmup:
            return self.initial + (1 - self.initial) * clock.epoch / self.warmup
        if clock.epoch >= clock.epochs - self.cooldown:
            return self.final
        share = (clock.epoch - self.warmup) / (clock.epochs - self.cooldown - self.warmup)
        return self.final + (1 - self.final) * _half_cosine(share)


@SCHEDULES.register("cyclic")
@dataclass(frozen=True, kw_only=True)
class Cyclic:
    """One triangle: straight from zero to the full rate at `peak`, straight back to zero at the end.

    Args:
        peak: share of the run at which the full rate is reached.

    Reference: Wong, Rice and Kolter, ICLR 2020 (0.5 on CIFAR-10, 0.4 on MNIST).
    """

    peak: Share = 0.5

    def __call__(self, clock: Clock) -> float:
        if clock.progress < self.peak:
            return clock.progress / self.peak
        return (1 - clock.progress) / (1 - self.peak)


@SCHEDULES.register("one_cycle")
@dataclass(frozen=True, kw_only=True)
class OneCycle:
    """Half a cosine up from `initial` to the full rate, half a cosine down to `final`.

    Args:
        peak: share of the run at which the full rate is reached.
        initial: share of the full rate at the first update.
        final: share of the full rate at the end.

    Reference: Smith and Topin, 2017, arXiv 1708.07120; peak 0.025 in the public re-implementation of
        Gowal et al., 2020.
    """

    peak: Share = 0.3
    initial: Share = 0.04
    final: Share = 0.000004

    def __call__(self, clock: Clock) -> float:
        if clock.progress < self.peak:
            return 1 - (1 - self.initial) * _half_cosine(clock.progress / self.peak)
        return self.final + (1 - self.final) * _half_cosine((clock.progress - self.peak) / (1 - self.peak))


def _half_cosine(progress: float) -> float:
    """1 at 0, 0 at 1."""
    return 0.5 * (1 + math.cos(math.pi * progress))
