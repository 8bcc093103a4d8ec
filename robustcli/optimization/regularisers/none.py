"""No regulariser."""

from dataclasses import dataclass

from robustcli.optimization.regularisers import REGULARISERS, RunningRegulariser
from robustcli.optimization.stateless import Stateless


@REGULARISERS.register("none", passes=(0, 0, 0))
@dataclass(frozen=True, kw_only=True)
class Unregularised(Stateless, RunningRegulariser):
    """No regulariser.

    Reference: none; r = 0.
    """
