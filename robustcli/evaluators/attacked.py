"""Accuracy under one attack."""

from dataclasses import dataclass

from robustcli.attacks import Attack
from robustcli.evaluators import EVALUATORS, Case, Stage
from robustcli.registry.types import Count


@EVALUATORS.register("attacked", smoke={"attack": {"name": "fgsm"}})
@dataclass(frozen=True, kw_only=True)
class Attacked:
    """Accuracy under one attack: an image survives when its adversarial image does not fool the model.

    The attack sees only images that are right when clean; restarts are the attack's own.

    When to use: for quick numbers under one attack, and to compare with papers that report PGD.

    First setting: attack: {name: pgd, steps: 20, keep: fooled} on 1000 images.

    Args:
        attack: the attack.
        batch_size: images per attack; changes memory and speed, not the number.

    Reference: Madry et al., ICLR 2018.
    """

    attack: Attack
    batch_size: Count = 250

    def stages(self, case: Case) -> list[Stage]:
        return [Stage.of(self.attack, self.batch_size)]
