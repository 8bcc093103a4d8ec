"""Stochastic weight averaging: the plain mean of the weights of chosen epochs."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from robustcli.optimization.averaging import AVERAGING, CleanImages
from robustcli.optimization.averaging.averaged_copy import AveragedCopy
from robustcli.optimization.progress import Progress
from robustcli.registry.types import Count, Size


@AVERAGING.register("swa", smoke={"start_epoch": 0})
@dataclass(frozen=True, kw_only=True)
class Swa:
    """average <- average + (weights - average) / (n + 1) at the end of every `every`-th epoch from a start.

    Until the first average, the current weights are evaluated. Averaged weights have no batch statistics; by default
    these are recomputed on clean training images, which moves them towards natural statistics.

    Args:
        start_epoch: epochs done before the first one is averaged.
        every: epochs between averaged weights.
        buffers: batch statistics: "re_estimate", "copy" of the trained network's, or "average".

    Reference: Izmailov et al., UAI 2018; for adversarial training Chen et al., ICLR 2021 (start 55, every 1).
    """

    start_epoch: Size = 55
    every: Count = 1
    buffers: Literal["copy", "average", "re_estimate"] = "re_estimate"

    def start(self, model: nn.Module) -> "RunningSwa":
        return RunningSwa(self, model)


class RunningSwa:
    """A Swa with its copy of the network and the number of averaged epochs."""

    def __init__(self, settings: Swa, model: nn.Module) -> None:
        self.settings = settings
        self.copy = AveragedCopy(model, settings.buffers)
        self.epochs = 0

    def update(self, model: nn.Module, progress: Progress) -> None:
        done, rest = divmod(progress.step + 1, progress.steps_per_epoch)
        since = done - 1 - self.settings.start_epoch
        if rest == 0 and since >= 0 and since % self.settings.every == 0:
            self.copy.move(model, 1 / (self.epochs + 1))
            self.epochs += 1

    def averaged(self, model: nn.Module, images: CleanImages) -> nn.Module:
        return self.copy.evaluated(model, images) if self.epochs else model

    def state_dict(self) -> dict[str, Any]:
        return {**self.copy.state_dict(), "epochs": self.epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.copy.load_state_dict(state)
        self.epochs = state["epochs"]
