"""A quick evaluation with an estimate of its error."""

from dataclasses import dataclass, replace

from robustcli.attacks.apgd import Apgd
from robustcli.attacks.square import Square
from robustcli.evaluators import EVALUATORS, AttackContext, Evaluator, Some, Stage
from robustcli.evaluators.autoattack import AutoAttack
from robustcli.registry.types import Count

# Shares of the survivors that later attacks run on, those nearest to a wrong class: one in this many, but at least so
# many images. The first two were chosen on two networks of digits, the last one on images that no stored comparison
# uses: on MNIST, those that AutoAttack's Square breaks were among the nearest 5 %, with one exception for each seed.
_TARGETED, _CLOSER, _NEAREST = 2, 8, 16
_LEAST = 25
# The short Square search: queries, and share of the image that its first windows cover. It breaks more of those
# images than Square with 5,000 queries from stripes, in about a fifth of the time.
_QUERIES, _FIRST_WINDOW = 1000, 0.3


@EVALUATORS.register(
    "quick",
    passes=(12_070, 2120, 0),
    sees_through_masking=True,
    smoke={"steps": 2, "least": 2, "batch_size": 8},
)
@dataclass(frozen=True, kw_only=True)
class Quick(Evaluator):
    """Attacks that run on ever fewer images, those nearest to a wrong class, then AutoAttack on a random sample.

    APGD on the margin of probabilities comes first, on all images. Targeted APGD, towards the classes with the nearest
    boundaries, runs on the half of the survivors with the largest margins, and with more steps on one in 8. On one in
    16, APGD on the margin takes more steps, and a short Square search continues from the points found so far.
    AutoAttack's attacks run on a random sample of the survivors: 10, or one in 100 if that is more. It gives an exact
    95 % interval of the robust accuracy, over the choice of the sample, and lowers the estimate as far as it
    contradicts the other attacks. The accuracy in the table counts the images that no attack broke, so it is an upper
    bound. If searches without gradients break many images, or the sample says that many would break, the gradients are
    misleading and the result is SUSPECT. It is never a result of AutoAttack.

    When to use: during development, where AutoAttack on all images takes too long.

    First setting: the defaults; a larger `least` for a narrower interval.

    Args:
        steps: steps of APGD on the margin and of the first targeted attack; later ones take four times as many.
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
    one_in: Count = 100
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
        # From the points of the two attacks before, so that few queries suffice.
        nudge = Square(queries=_QUERIES, p_init=_FIRST_WINDOW, batch_size=self.batch_size)
        cheap = [
            Stage(
                name=name,
                attack=attack,
                noise=f"quick {name}",
                batch_size=self.batch_size,
                nearest=None if one_in is None else Some(_LEAST, one_in),
                hands_on=name in ("closer", "longer"),
                starts=name == "nudge",
                surrogate=search,
            )
            for name, attack, one_in in (
                ("margin", margin, None),
                ("targeted", targeted, _TARGETED),
                ("closer", replace(targeted, steps=4 * self.steps), _CLOSER),
                ("longer", replace(margin, steps=4 * self.steps), _NEAREST),
                ("nudge", nudge, _NEAREST),
            )
        ]
        drawn = Some(self.least, self.one_in)
        return [*cheap, *(replace(stage, subset=drawn).renamed("sample ") for stage in full)]
