"""Layers with running statistics, like batch norms."""

from torch import nn


class RunningStatistics(nn.Module):
    """Base of layers that update running statistics in train mode.

    Attributes:
        track_running_stats: whether they are updated; attacks that must not move them clear it, as for batch norms.
    """

    track_running_stats: bool

    def reset_running_stats(self) -> None:
        """Start anew at the next pass in train mode, for averages of weights that re-estimate statistics."""
        raise NotImplementedError
