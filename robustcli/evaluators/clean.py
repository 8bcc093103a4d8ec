"""Clean accuracy."""

from dataclasses import dataclass

from robustcli.evaluators import EVALUATORS, Case, Stage
from robustcli.registry.types import Count


@EVALUATORS.register("clean", without_attack=True)
@dataclass(frozen=True, kw_only=True)
class Clean:
    """Accuracy on unperturbed images.

    Args:
        batch_size: images per forward; changes memory and speed, not the number.

    Reference: none; also called natural, standard or benign accuracy.
    """

    batch_size: Count = 500

    def stages(self, case: Case) -> list[Stage]:
        return []
