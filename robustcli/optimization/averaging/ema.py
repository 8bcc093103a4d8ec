"""Exponential moving average of the weights."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from robustcli.optimization.averaging import AVERAGING, CleanImages
from robustcli.optimization.averaging.averaged_copy import AveragedCopy
from robustcli.optimization.progress import Progress
from robustcli.registry.types import NonNegative, Share


@AVERAGING.register("ema", smoke={"decay": 0.5})
@dataclass(frozen=True, kw_only=True)
class Ema:
    """average <- d average + (1 - d) weights, after every update.

    Args:
        decay: d, the weight of the old average; the window is 1 / (1 - d) updates.
        ramp: use min(d, (1 + t) / (10 + t)) at update t = 0, 1, ..., so that early weights are forgotten.
        warmup: epochs during which the average is the current weights; t counts from its end.
        buffers: batch statistics: "copy" of the trained network's, "average", or "re_estimate" from
            clean training images whenever the average is evaluated.

    Reference: Gowal et al., 2020, arXiv 2010.03593 (decay 0.995 with ramp); Rebuffi et al., NeurIPS 2021.
    """

    decay: Share = 0.995
    ramp: bool = True
    warmup: NonNegative = 0.0
    buffers: Literal["copy", "average", "re_estimate"] = "copy"

    def decay_at(self, update: int) -> float:
        """Return d for an update, counted from 0 after the warm-up."""
        return min(self.decay, (1 + update) / (10 + update)) if self.ramp else self.decay

    def start(self, model: nn.Module) -> "RunningEma":
        return RunningEma(self, model)


class RunningEma:
    """An Ema with its copy of the network and the number of averaged updates."""

    def __init__(self, settings: Ema, model: nn.Module) -> None:
        self.settings = settings
        self.copy = AveragedCopy(model, settings.buffers)
        self.updates = 0

    def update(self, model: nn.Module, progress: Progress) -> None:
        if progress.epoch < self.settings.warmup:
            self.copy.move(model, 1.0)
            return
        self.copy.move(model, 1 - self.settings.decay_at(self.updates))
        self.updates += 1

    def averaged(self, model: nn.Module, images: CleanImages) -> nn.Module:
        return self.copy.evaluated(model, images)

    def state_dict(self) -> dict[str, Any]:
        return {**self.copy.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.copy.load_state_dict(state)
        self.updates = state["updates"]
