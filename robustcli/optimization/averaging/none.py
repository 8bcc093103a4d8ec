"""No averaging: the last weights are evaluated."""

from dataclasses import dataclass

from torch import nn

from robustcli.optimization.averaging import AVERAGING, CleanImages
from robustcli.optimization.progress import Progress
from robustcli.optimization.stateless import Stateless


@AVERAGING.register("none")
@dataclass(frozen=True, kw_only=True)
class LastWeights(Stateless):
    """Evaluate the last weights.

    Reference: none.
    """

    def update(self, model: nn.Module, progress: Progress) -> None:
        pass

    def averaged(self, model: nn.Module, images: CleanImages) -> nn.Module:
        return model
