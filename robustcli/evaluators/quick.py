"""A quick evaluation with an estimate of its error."""

from dataclasses import dataclass, replace

from robustcli.attacks.apgd import Apgd
from robustcli.evaluators import EVALUATORS, AttackContext, Evaluator, Some, Stage
from robustcli.evaluators.autoattack import AutoAttack
from robustcli.registry.types import Count

# Shares of the survivors that later attacks run on, those nearest to a wrong class: one in this many, but at least so
# many images. On two networks of digits, the images that AutoAttack breaks and the attacks before do not were among the
# nearest 42 % before the targeted attack, 14 % before the closer one and, with two exceptions, 7 % before Square.
_TARGETED, _CLOSER, _SQUARE = 2, 8, 16
_LEAST = 25


@EVALUATORS.register(
    "quick",
    passes=(10_520, 2080, 0),
    sees_through_masking=True,
    smoke={"steps": 2, "least": 2, "batch_size": 8},
)
@dataclass(frozen=True, kw_only=True)
class Quick(Evaluator):
    """Attacks that run on ever fewer images, those nearest to a wrong class, then AutoAttack's on a random sample.

    APGD on the margin of probabilities comes first, on all images. Targeted APGD, towards the classes with the nearest
    boundaries, runs on the half of the survivors with the largest margins, with more steps on one in 8, and
    AutoAttack's Square on one in 16. All of AutoAttack's attacks run on a random sample of the survivors. It gives an
    exact 95 % interval of the robust accuracy, over the choice of the sample, and lowers the estimate as far as it
    contradicts the other attacks. The accuracy in the table counts the images that no attack broke, so it is an upper
    bound. If Square breaks many images, or the sample says that many would break, the gradients are misleading and the
    result is SUSPECT. It is never a result of AutoAttack.

    When to use: during development, where AutoAttack on all images takes too long.

    First setting: the defaults; a larger `least` for a narrower interval.

    Args:
        steps: steps of APGD on the margin and of the first targeted attack; the closer one takes four times as many.
        targets: wrong classes that the targeted attacks aim at.
        least: smallest number of survivors in the sample; all, if fewer survive.
        one_in: the sample has one in this many survivors, if that is more than `least`.
        batch_size: images attacked at once.

    Reference: margin of probabilities: Xie et al., arXiv 2411.15210; targets: Melamed et al., arXiv 2407.02240; sample:
        two-phase sampling with the hypergeometric interval, an idea of this project.
    """

    steps: Count = 10
    targets: Count = 3
    least: Count = 10
    one_in: Count = 50
    batch_size: Count = 250

    def stages(self, context: AttackContext) -> list[Stage]:
        full = AutoAttack(batch_size=self.batch_size).stages(context)
        search = full[0].surrogate
        margin = Apgd(loss="probability_margin", steps=self.steps, batch_size=self.batch_size)
        targeted = Apgd(
            # The targeted loss compares four logits.
            loss="nearest_dlr" if context.classes > 3 else "margin",
            targets=self.targets,
            steps=self.steps,
            batch_size=self.batch_size,
        )
        cheap = [
            Stage(
                name=name,
                attack=attack,
                noise=f"quick {name}",
                batch_size=self.batch_size,
                nearest=None if one_in is None else Some(_LEAST, one_in),
                surrogate=search,
            )
            for name, attack, one_in in (
                ("margin", margin, None),
                ("targeted", targeted, _TARGETED),
                ("closer", replace(targeted, steps=4 * self.steps), _CLOSER),
            )
        ]
        drawn = Some(self.least, self.one_in)
        # Square first: it runs on the nearest images and on the sample together, because few images take as long.
        square = [replace(stage, subset=drawn, nearest=Some(_LEAST, _SQUARE)) for stage in full if stage.is_black_box]
        others = [replace(stage, subset=drawn).renamed("sample ") for stage in full if not stage.is_black_box]
        return [*cheap, *square, *others]
