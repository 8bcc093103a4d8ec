"""What an accuracy does not tell of a network. One diagnostic per file.

`robust diagnose` runs them; no spec names them, since they look at networks and change none.
"""

from typing import Any, Protocol

from torch import Tensor, nn

from robustcli.registry.registry import Registry
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel

DIAGNOSTICS = Registry("diagnostics")


class Diagnostic(Protocol):
    """Settings of a diagnostic; calling it looks at a network, which is afterwards what it was.

    The network is in eval mode and its weights are held. What is found does not depend on how images are cut into
    batches, but for rounding, and equal noise finds equal things.
    """

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise
    ) -> dict[str, Any]:
        """What was found of x (n, c, h, w) in [0, 1] with labels y (n,), as plain data that JSON can hold.

        Shares and accuracies are fractions; what cannot be said is None. A list of mappings with equal keys is a
        table. Two keys have a form that pictures know: "curve" is a table whose first column the others are drawn
        over; "surface" has two axes (lists of numbers) and then grids over them (lists of lists; rows belong to the
        first axis).
        """
        ...
