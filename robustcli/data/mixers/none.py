"""No mixing."""

from dataclasses import dataclass

from torch import Tensor

from robustcli.data.mixers import MIXERS
from robustcli.data.targets import Labels
from robustcli.threat.noise import Noise


@MIXERS.register("none", mixes_alone=True)
@dataclass(frozen=True, kw_only=True)
class Unmixed:
    """Keep images and labels unchanged.

    Reference: none.
    """

    def __call__(self, x: Tensor, labels: Labels, classes: int, rng: Noise) -> tuple[Tensor, Labels]:
        return x, labels
