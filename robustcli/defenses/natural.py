"""Natural training, without adversarial images: the reference for every defense."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.attacks.none import NoAttack
from robustcli.defenses import DEFENSES, Batch, StatelessLoss
from robustcli.defenses.min_max import MinMax
from robustcli.registry.types import ProperShare


@dataclass(frozen=True, kw_only=True)
class CleanCrossEntropy(StatelessLoss):
    """CE(f(x), y), mean over the batch."""

    label_smoothing: float

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch.x), batch.y, label_smoothing=self.label_smoothing)


@DEFENSES.register("natural", passes=(1, 0, 1))
def natural(*, label_smoothing: ProperShare = 0.0) -> MinMax:
    """Cross-entropy on clean images.

    When to use: as the reference for clean accuracy, and to check that an evaluation breaks a non-robust network.

    First setting: the defaults.

    Args:
        label_smoothing: s in the targets (1 - s) on the label plus s / k on each of the k classes.

    Reference: none; empirical risk minimization.
    """
    return MinMax(attack=NoAttack(), loss=CleanCrossEntropy(label_smoothing=label_smoothing))
