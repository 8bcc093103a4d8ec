"""A quick evaluation with an estimate of its error."""

from dataclasses import dataclass, replace

from robustcli.attacks.apgd import Apgd
from robustcli.evaluators import EVALUATORS, AttackContext, Evaluator, Stage, Subset
from robustcli.evaluators.autoattack import AutoAttack
from robustcli.registry.types import Count


@EVALUATORS.register(
    "quick",
    passes=(10_460, 1980, 0),
    sees_through_masking=True,
    smoke={"steps": 2, "least": 2, "batch_size": 8},
)
@dataclass(frozen=True, kw_only=True)
class Quick(Evaluator):
    """Few-step gradient attacks on all images, then AutoAttack's attacks on some of those that survive.

    APGD on the margin of probabilities comes first, then targeted APGD towards the classes with the nearest boundaries.
    AutoAttack's attacks run on the survivors nearest to a wrong class and on a random sample of the others. How many of
    them break gives an estimate for all images, with an exact 95 % interval over the choice of the sample. The
    accuracy in the table counts the images that no attack broke, so it is an upper bound. If many of these images
    break, the cheap attacks are misled and the result is SUSPECT. It is never a result of AutoAttack.

    When to use: during development, where AutoAttack on all images takes too long.

    First setting: the defaults; a larger `least` for a narrower interval.

    Args:
        steps: steps of APGD on the margin; the targeted attack takes twice as many.
        targets: wrong classes that the targeted attack aims at.
        least: smallest number of survivors that AutoAttack's attacks run on; all, if fewer survive.
        one_in: AutoAttack's attacks run on one in this many survivors, if that is more than `least`.
        batch_size: images attacked at once.

    Reference: margin of probabilities: Xie et al., arXiv 2411.15210; targets: Melamed et al., arXiv 2407.02240; sample:
        two-phase sampling with the hypergeometric interval, an idea of this project.
    """

    steps: Count = 10
    targets: Count = 3
    least: Count = 25
    one_in: Count = 40
    batch_size: Count = 250

    def stages(self, context: AttackContext) -> list[Stage]:
        full = AutoAttack(batch_size=self.batch_size).stages(context)
        search = full[0].surrogate
        margin = Apgd(loss="probability_margin", steps=self.steps, batch_size=self.batch_size)
        targeted = Apgd(
            # The targeted loss compares four logits.
            loss="nearest_dlr" if context.classes > 3 else "margin",
            targets=self.targets,
            steps=2 * self.steps,
            batch_size=self.batch_size,
        )
        cheap = [
            Stage(name=name, attack=attack, noise=f"quick {name}", batch_size=self.batch_size, surrogate=search)
            for name, attack in (("margin", margin), ("targeted", targeted))
        ]
        subset = Subset(least=self.least, one_in=self.one_in)
        return [*cheap, *(replace(stage, subset=subset).renamed("sample ") for stage in full)]
