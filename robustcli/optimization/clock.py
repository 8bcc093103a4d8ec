"""Where training stands."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Clock:
    """The place of one update in the whole of training.

    Args:
        step: updates done before this one, over all epochs.
        steps_per_epoch: updates in one epoch.
        epochs: epochs in the whole run.
    """

    step: int
    steps_per_epoch: int
    epochs: int

    @property
    def epoch(self) -> float:
        """Epochs done before this update, with the fraction of the running one."""
        return self.step / self.steps_per_epoch

    @property
    def progress(self) -> float:
        """Share of all updates done before this one, in [0, 1)."""
        return self.step / (self.steps_per_epoch * self.epochs)

    @property
    def epoch_after(self) -> float:
        """Epochs done once this update is made (the convention of Rice et al.'s loop)."""
        return (self.step + 1) / self.steps_per_epoch

    def warmed_up(self, epochs: float, form: Literal["line", "stairs", "sine"]) -> float:
        """How far a warm-up is, 1 once it is over (or there is none).

        Args:
            epochs: that it takes; 0 is no warm-up.
            form: "line": with every update; "stairs": with every epoch, by as much; "sine": with every epoch, along
                half a wave.
        """
        done = self.epoch if form == "line" else float(self.step // self.steps_per_epoch)
        if done >= epochs:
            return 1.0
        return 0.5 * (1 - math.cos(math.pi * done / epochs)) if form == "sine" else done / epochs
