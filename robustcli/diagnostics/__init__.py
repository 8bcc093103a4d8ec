"""Diagnostics: measurements that go beyond accuracy. One per file.

`robust diagnose` runs them. Specs do not name them, because they do not change the network.
"""

from abc import abstractmethod
from typing import Any, Protocol

from torch import Tensor, nn

from robustcli.registry.registry import Registry
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel

DIAGNOSTICS = Registry("diagnostics")


@DIAGNOSTICS.protocol
class Diagnostic(Protocol):
    """Settings of a diagnostic. Calling it measures a network and leaves it unchanged.

    The network is in eval mode and its weights do not require gradients. Up to rounding, the result does not depend on
    the batch size. The same seed gives the same result.
    """

    @abstractmethod
    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise
    ) -> dict[str, Any]:
        """Return measurements on x (n, c, h, w) in [0, 1] with labels y (n,), as data that JSON can hold.

        Accuracies are fractions; an undefined value is None. A list of mappings with equal keys is a table. Two keys
        are also plotted: "curve" is a table whose first column is the horizontal axis; "surface" has two axes (lists of
        numbers), followed by grids (lists of lists; rows belong to the first axis).
        """
        ...
