"""Where training stands."""

from dataclasses import dataclass


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
