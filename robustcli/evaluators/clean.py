"""Clean accuracy."""

from dataclasses import dataclass

from torch import Tensor, nn

from robustcli.evaluators import EVALUATORS
from robustcli.evaluators.verification import right_when_clean
from robustcli.fields import Count
from robustcli.noise import IndexedNoise
from robustcli.threat import ThreatModel


@EVALUATORS.register("clean")
@dataclass(frozen=True, kw_only=True)
class Clean:
    """Accuracy on unperturbed images.

    Args:
        batch_size: images per forward; changes memory and speed, not the number.

    Reference: none; also called natural, standard or benign accuracy.
    """

    batch_size: Count = 500

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise) -> Tensor:
        return right_when_clean(model, x, y, self.batch_size)
