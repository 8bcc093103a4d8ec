"""The progress of training."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Progress:
    """Progress of the training at one update.

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
        """Epochs done before this update, with the fraction of the current one."""
        return self.step / self.steps_per_epoch

    @property
    def share(self) -> float:
        """Share of all updates done before this one, in [0, 1)."""
        return self.step / (self.steps_per_epoch * self.epochs)

    def warmed_up(self, epochs: float, form: Literal["line", "stairs", "sine"]) -> float:
        """Progress of a warm-up, from 0 to 1; 1 once it is over or if there is none.

        Args:
            epochs: length of the warm-up; 0 is none.
            form: "line": linear, at every update; "stairs": linear, at every epoch; "sine": half a cosine, at every
                epoch.
        """
        done = self.epoch if form == "line" else float(self.step // self.steps_per_epoch)
        if done >= epochs:
            return 1.0
        return 0.5 * (1 - math.cos(math.pi * done / epochs)) if form == "sine" else done / epochs
