"""No averaging: the last weights are evaluated."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from robustcli.optimization.averaging import AVERAGING, CleanImages
from robustcli.optimization.progress import Progress


@AVERAGING.register("none")
@dataclass(frozen=True, kw_only=True)
class LastWeights:
    """Evaluate the weights as training leaves them.

    Reference: none.
    """

    def start(self, model: nn.Module) -> "_Nothing":
        return _Nothing()


class _Nothing:
    def update(self, model: nn.Module, progress: Progress) -> None:
        pass

    def averaged(self, model: nn.Module, images: CleanImages) -> nn.Module:
        return model

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
