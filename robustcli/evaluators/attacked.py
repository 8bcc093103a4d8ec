"""Accuracy under one attack."""

from dataclasses import dataclass

from torch import Tensor, nn

from robustcli.attacks import Attack
from robustcli.evaluators import EVALUATORS, chunks, is_correct
from robustcli.evaluators.verification import require_inside, right_when_clean
from robustcli.fields import Count
from robustcli.noise import IndexedNoise
from robustcli.threat import ThreatModel


@EVALUATORS.register("attacked", smoke={"attack": {"name": "fgsm"}})
@dataclass(frozen=True, kw_only=True)
class Attacked:
    """Accuracy under one attack: an image survives when its adversarial image does not fool the model.

    The attack sees only images that are right when clean; restarts are the attack's own. Where its images lie
    is measured, and they are classified by a forward of their own.

    Args:
        attack: the attack.
        batch_size: images per attack; changes memory and speed, not the number.

    Reference: Madry et al., ICLR 2018.
    """

    attack: Attack
    batch_size: Count = 250

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise) -> Tensor:
        name = type(self.attack).__name__
        # By the attack's kind, not its settings: a sweep over steps walks on from the same starts.
        noise = rng.split(name)
        survives = right_when_clean(model, x, y, self.batch_size)
        alive = survives.nonzero().flatten()
        for part in chunks(len(alive), self.batch_size):
            index = alive[part]
            x_adv = self.attack(model, x[index], y[index], threat, noise.rows(index)).detach()
            # Indexed again: an attack that writes into its input must not move what it is compared with.
            require_inside(name, x_adv, x[index], threat)
            survives[index] = is_correct(model, x_adv, y[index]).cpu()
        return survives
