"""FAT, friendly adversarial training: the least adversarial of the images that fool the model."""

from dataclasses import dataclass
from typing import Literal

from robustcli.attacks import Attack
from robustcli.attacks.early_stopped_pgd import EarlyStoppedPgd
from robustcli.defenses import DEFENSES
from robustcli.defenses.min_max import AdversarialCrossEntropy, MinMax, StatelessCurriculum, adjusted
from robustcli.errors import RobustCliError
from robustcli.optimization.progress import Progress
from robustcli.registry.types import AttackBn, Count, NonNegative, Positive, Size


@dataclass(frozen=True, kw_only=True)
class GrowingPatience(StatelessCurriculum):
    """The patience of the attack is patiences[i] once i of the epochs in `after` are done."""

    patiences: tuple[int, ...]
    after: tuple[int, ...]

    def attack(self, attack: Attack, progress: Progress) -> Attack:
        stage = sum(progress.epoch >= epochs for epochs in self.after)
        return adjusted(attack, patience=self.patiences[stage])


@DEFENSES.register(
    "fat",
    sets="patience",
    measured="is measured at its most: on a CPU, images that have stopped leave their batch",
    smoke={"steps": 2},
    passes=(11, 10, 1),
    fewest=(2, 1, 1),
)
def fat(
    *,
    patiences: tuple[Size, ...] = (0, 1, 2),
    after: tuple[Count, ...] = (50, 90),
    steps: Count = 10,
    step_size: Positive | None = None,
    noise_std: NonNegative = 0.001,
    start: Literal["random", "gaussian"] = "random",
    attack_bn: AttackBn = "eval",
) -> MinMax:
    """Cross-entropy at images of a PGD that stops soon after an image is misclassified.

    Early in training it stops sooner, because very adversarial images would harm training. The number of steps per
    image is recorded. On a CPU with attack_bn "eval", images that have stopped cost nothing.

    When to use: where clean accuracy matters more than the last points of robust accuracy.

    First setting: patiences (0, 1, 2) with `after` at about half and nine tenths of the epochs.

    Args:
        patiences: tau, the number of further steps after an image is misclassified, in each stage of training; equal
            to `steps` it is PGD-AT.
        after: epochs done when the next stage starts; one fewer than patiences.
        steps: maximum number of gradient steps of the attack.
        step_size: length of one step in the unit of eps; null is a quarter of eps; as released 0.007.
        noise_std: standard deviation of normal noise added to every step, in pixels of [0, 1].
        start: start of the attack: a random point of the threat set, or x plus 0.001 times normal noise.

    Reference: Zhang et al., ICML 2020, Algorithms 1 and 2; arXiv 2002.11242.
    """
    if len(patiences) != len(after) + 1:
        raise RobustCliError(
            f"defense.patiences: has {len(patiences)} entries and 'after' has {len(after)}; expected one more than "
            "in 'after'"
        )
    return MinMax(
        attack=EarlyStoppedPgd(
            steps=steps, step_size=step_size, patience=patiences[0], noise_std=noise_std, start=start
        ),
        loss=AdversarialCrossEntropy(),
        attack_bn=attack_bn,
        curriculum=GrowingPatience(patiences=patiences, after=after),
    )
