"""No regularizer."""

from dataclasses import dataclass

from robustcli.optimization.regularizers import REGULARIZERS, RunningRegularizer
from robustcli.optimization.stateless import Stateless


@REGULARIZERS.register("none", passes=(0, 0, 0))
@dataclass(frozen=True, kw_only=True)
class Unregularized(Stateless, RunningRegularizer):
    """No regularizer.

    Reference: none; r = 0.
    """
