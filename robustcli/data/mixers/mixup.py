"""MixUp: blend every image of a batch, and its label, with another one."""

from dataclasses import dataclass

from torch import Tensor

from robustcli.data.mixers import MIXERS
from robustcli.data.mixers.partners import beta, mixed_labels, partners
from robustcli.data.targets import Labels
from robustcli.registry.types import NonNegative
from robustcli.threat.noise import Noise


@MIXERS.register("mixup", mixes_labels=True, smoke={"alpha": 0.4})
@dataclass(frozen=True, kw_only=True)
class MixUp:
    """x <- s x_i + (1 - s) x_j and q <- s q_i + (1 - s) q_j, with one s ~ Beta(alpha, alpha) for the batch.

    Images are blended before they are attacked; attack and loss both use the blended labels, as in the adversarial
    training of Rice et al.

    Args:
        alpha: parameter of the distribution; 1 is uniform, smaller values blend less. 0 turns mixing off.

    Reference: Zhang et al., ICLR 2018, arXiv 1710.09412; before an attack: Rice, Wong and Kolter, ICML 2020.
    """

    alpha: NonNegative = 1.0

    def __call__(self, x: Tensor, labels: Labels, classes: int, rng: Noise) -> tuple[Tensor, Labels]:
        if self.alpha == 0:
            return x, labels
        kept, partner = beta(self.alpha, x, rng).to(x.dtype), partners(x, rng)
        return kept * x + (1 - kept) * x[partner], mixed_labels(labels, partner, kept, classes, x.dtype)
