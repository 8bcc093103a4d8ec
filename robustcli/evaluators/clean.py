"""Clean accuracy."""

from dataclasses import dataclass

from robustcli.evaluators import EVALUATORS, AttackContext, Evaluator, Stage
from robustcli.registry.types import Count


@EVALUATORS.register("clean", passes=(1, 0, 0), without_attack=True)
@dataclass(frozen=True, kw_only=True)
class Clean(Evaluator):
    """Accuracy on unperturbed images.

    When to use: next to every robust accuracy.

    First setting: the defaults, on all test images.

    Args:
        batch_size: images per forward; changes memory and speed, not the number.

    Reference: none; also called natural, standard or benign accuracy.
    """

    batch_size: Count = 500

    def stages(self, context: AttackContext) -> list[Stage]:
        return []
