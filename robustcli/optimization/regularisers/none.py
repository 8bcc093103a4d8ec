"""No regulariser."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from robustcli.optimization.progress import Progress
from robustcli.optimization.regularisers import REGULARISERS


@REGULARISERS.register("none", passes=(0, 0, 0))
@dataclass(frozen=True, kw_only=True)
class Unregularised:
    """Ask nothing of the weights beside the loss.

    Reference: none; r = 0.
    """

    def start(self, model: nn.Module) -> "_Nothing":
        return _Nothing()


class _Nothing:
    def penalty(self, model: nn.Module, x: Tensor, y: Tensor, progress: Progress) -> Tensor | None:
        return None

    def after(self, model: nn.Module, progress: Progress) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
