"""Schedules that are constant between drops."""

import math
from dataclasses import dataclass

from robustcli.errors import RobustCliError
from robustcli.optimization.progress import Progress
from robustcli.optimization.schedules import SCHEDULES, Schedule
from robustcli.registry.types import NonNegative, Share

# In updates; a run has far fewer than 1e9 of them.
_ROUNDING = 1e-6


@SCHEDULES.register("constant")
@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The full rate throughout.

    Reference: none.
    """

    def __call__(self, progress: Progress) -> float:
        return 1.0


@SCHEDULES.register("piecewise", spans_training=True)
@dataclass(frozen=True, kw_only=True)
class Piecewise(Schedule):
    """Multiply by `factor` at shares of the whole run, counted after the update.

    Because the count is taken after the update, a drop at one half of E epochs already applies to the last update of
    epoch E/2.

    Args:
        at: shares of the run, in (0, 1), at which the rate drops.
        factor: factor of each drop.

    Reference: Rice, Wong and Kolter, ICML 2020 (at 0.5 and 0.75, by 0.1).
    """

    at: tuple[float, ...] = (0.5, 0.75)
    factor: Share = 0.1

    def __call__(self, progress: Progress) -> float:
        total = progress.steps_per_epoch * progress.epochs
        # In updates, less than their rounding: 0.55 * 100 is a little more than 55.
        return self.factor ** sum(progress.step + 1 >= share * total - _ROUNDING for share in self.at)


@SCHEDULES.register("multistep", added={"warmup": 0.0}, smoke={"after": (1,)})
@dataclass(frozen=True, kw_only=True)
class Multistep(Schedule):
    """Multiply by `factor` after given numbers of epochs.

    Args:
        after: epochs done before each drop; a drop "at epoch 75" of a loop that counts from 1 is 74 here.
        factor: factor of each drop; a list has one for every drop.
        decay: slow decrease between the drops: the rate is also divided by 1 + decay * updates, as in Keras.
        warmup: epochs at the start during which the rate rises linearly from 0.

    Reference: Pang et al., ICLR 2021 (after 100 and 105 of 110); Zhang et al., ICML 2019 (after 74); with decay
        1e-4, Wang et al., ICML 2019; with factors 0.1, 0.1 and 0.5, Zhang et al., ICML 2020; with a warm-up of 5
        epochs, Xie et al., 2020.
    """

    after: tuple[int, ...]
    factor: Share | tuple[Share, ...] = 0.1
    decay: NonNegative = 0.0
    warmup: NonNegative = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.factor, tuple) and len(self.factor) != len(self.after):
            raise RobustCliError(
                f"train.schedule.factor: {len(self.factor)} factors for {len(self.after)} drops in 'after'; write one "
                "for each, or one number for all"
            )

    def __call__(self, progress: Progress) -> float:
        drops = sum(progress.step >= epochs * progress.steps_per_epoch for epochs in self.after)
        left = math.prod(self.factor[:drops]) if isinstance(self.factor, tuple) else self.factor**drops
        risen = progress.epoch / self.warmup if progress.epoch < self.warmup else 1.0
        return left * risen / (1 + self.decay * progress.step)
