"""Accuracy under one attack."""

from dataclasses import dataclass

from robustcli.attacks import Attack
from robustcli.evaluators import EVALUATORS, AttackContext, Evaluator, Stage
from robustcli.registry.types import Count


@EVALUATORS.register("attack", formerly="attacked", smoke={"attack": {"name": "fgsm"}})
@dataclass(frozen=True, kw_only=True)
class Attacked(Evaluator):
    """Accuracy under one attack: an image survives if its adversarial image is classified correctly.

    Only images that are classified correctly are attacked. Restarts are a setting of the attack.

    When to use: for quick numbers under one attack, and to compare with papers that report PGD.

    First setting: attack: {name: pgd, steps: 20, keep: fooled} on 1000 images.

    Args:
        attack: the attack.
        batch_size: images per attack; changes memory and speed, not the number.

    Reference: Madry et al., ICLR 2018.
    """

    attack: Attack
    batch_size: Count = 250

    def stages(self, context: AttackContext) -> list[Stage]:
        return [Stage.of(self.attack, self.batch_size)]
