"""Schedules that change at every update."""

import math
from dataclasses import dataclass, replace

from robustcli.optimization.progress import Progress
from robustcli.optimization.schedules import SCHEDULES, Schedule
from robustcli.registry.types import MomentumRange, NonNegative, Share


@SCHEDULES.register("linear", spans_training=True)
@dataclass(frozen=True, kw_only=True)
class Linear(Schedule):
    """A straight line from the full rate to `end` at the end of the run.

    Args:
        end: share of the full rate at the end.

    Reference: none.
    """

    end: Share = 0.0

    def __call__(self, progress: Progress) -> float:
        return 1 + (self.end - 1) * progress.share


@SCHEDULES.register("cosine", spans_training=True, smoke={"warmup": 2})
@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Half a cosine from the full rate to `final`, between a linear warm-up and a cool-down.

    Args:
        warmup: epochs of the warm-up; the cosine fills the rest of the run up to the cool-down.
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

    def __call__(self, progress: Progress) -> float:
        if progress.epoch < self.warmup:
            return self.initial + (1 - self.initial) * progress.epoch / self.warmup
        if progress.epoch >= progress.epochs - self.cooldown:
            return self.final
        share = (progress.epoch - self.warmup) / (progress.epochs - self.cooldown - self.warmup)
        return self.final + (1 - self.final) * _half_cosine(share)


@SCHEDULES.register("cyclic", spans_training=True, added={"momentum": None}, smoke={"momentum": (0.8, 0.9)})
@dataclass(frozen=True, kw_only=True)
class Cyclic(Schedule):
    """One triangle: a line from zero to the full rate at `peak`, then a line back to zero at the end.

    With `momentum`, the momentum runs the opposite way: highest at both ends, lowest at the peak of the rate.

    Args:
        peak: share of the run at which the full rate is reached.
        momentum: lowest and highest momentum, for SGD's momentum or beta1 of Adam; replaces the optimizer's own.
            [0.8, 0.9] is torch's default and was used for RS-FGSM and N-FGSM. null keeps the optimizer's.

    Reference: Wong, Rice and Kolter, ICLR 2020 (0.5 on CIFAR-10, 0.4 on MNIST).
    """

    peak: Share = 0.5
    momentum: MomentumRange | None = None

    def __call__(self, progress: Progress) -> float:
        if progress.share < self.peak:
            return progress.share / self.peak
        return (1 - progress.share) / (1 - self.peak)

    def momentum_at(self, progress: Progress) -> float | None:
        return None if self.momentum is None else _against(self.momentum, self(progress))


@SCHEDULES.register("one_cycle", spans_training=True, added={"momentum": None}, smoke={"momentum": (0.85, 0.95)})
@dataclass(frozen=True, kw_only=True)
class OneCycle(Schedule):
    """Half a cosine up from `initial` to the full rate, then half a cosine down to `final`.

    With `momentum`, the momentum runs the opposite way: highest at both ends, lowest at the peak of the rate. torch's
    OneCycleLR reaches its peak and its end one update earlier.

    Args:
        peak: share of the run at which the full rate is reached.
        initial: share of the full rate at the first update.
        final: share of the full rate at the end.
        momentum: lowest and highest momentum, for SGD's momentum or beta1 of Adam; replaces the optimizer's own.
            [0.85, 0.95] is torch's default and was used for HAT and SCORE. null keeps the optimizer's.

    Reference: Smith and Topin, 2017, arXiv 1708.07120; peak 0.025 in the public re-implementation of
        Gowal et al., 2020.
    """

    peak: Share = 0.3
    initial: Share = 0.04
    final: Share = 0.000004
    momentum: MomentumRange | None = None

    def __call__(self, progress: Progress) -> float:
        if progress.share < self.peak:
            return 1 - (1 - self.initial) * _half_cosine(progress.share / self.peak)
        return self.final + (1 - self.final) * _half_cosine((progress.share - self.peak) / (1 - self.peak))

    def momentum_at(self, progress: Progress) -> float | None:
        if self.momentum is None:
            return None
        return _against(self.momentum, replace(self, initial=0.0, final=0.0)(progress))


def _half_cosine(done: float) -> float:
    """Half a cosine from 1 at 0 to 0 at 1."""
    return 0.5 * (1 + math.cos(math.pi * done))


def _against(momentum: MomentumRange, height: float) -> float:
    """Return the highest momentum at height 0 and the lowest at height 1."""
    low, high = momentum
    return high - (high - low) * height
