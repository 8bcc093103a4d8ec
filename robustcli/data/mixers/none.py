"""No mixing."""

from dataclasses import dataclass

from torch import Tensor

from robustcli.data.mixers import MIXERS
from robustcli.data.targets import Labels
from robustcli.threat.noise import Noise


@MIXERS.register("none", mixes_alone=True)
@dataclass(frozen=True, kw_only=True)
class Unmixed:
    """Every image stays what it is.

    Reference: none.
    """

    def __call__(self, x: Tensor, labels: Labels, classes: int, rng: Noise) -> tuple[Tensor, Labels]:
        return x, labels
