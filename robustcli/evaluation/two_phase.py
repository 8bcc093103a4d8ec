"""Estimates from two phases: cheap attacks on all images, expensive ones on some of the survivors."""

from collections.abc import Sequence
from dataclasses import dataclass

from robustcli.evaluation.evidence import Evidence
from robustcli.statistics import hypergeometric_interval
from robustcli.store.evaluations import Estimate, Evaluation, StageResult

# Share of images that the expensive attacks break beyond the cheap ones, above which the phases disagree.
_DISAGREEMENT = 0.01


@dataclass(frozen=True)
class TwoPhases:
    """Counts of the second phase.

    The expensive attacks would break an unknown number of the survivors of the cheap ones. The number of broken images
    in a random sample follows the hypergeometric distribution; this gives an exact interval. The estimate is the
    number in the interval that is nearest to what the cheap attacks found, which is its upper end: a dozen images are
    too few to extrapolate from, because each broken one would count for a twelfth of all. So the estimate errs upwards.

    Older results also have images nearest to a wrong class, which were all attacked and are counted; their estimate
    extrapolates the share of the sample, without a bias, but with a larger error.

    Args:
        total: number of images.
        nearest, nearest_broken: number of images nearest to a wrong class, and of those broken.
        others: number of other survivors of the cheap attacks.
        drawn, drawn_broken: number of others in the sample, and of those broken.
        by: names of the stages that broke some.
    """

    total: int
    nearest: int
    nearest_broken: int
    others: int
    drawn: int
    drawn_broken: int
    by: tuple[str, ...] = ()

    @classmethod
    def of(cls, found: Evidence | Evaluation) -> "TwoPhases | None":
        """Return the counts of an evaluation; None if all attacks ran on every survivor."""
        if found.sample is None or len(found.sample) != found.total:
            return None
        pairs = list(zip(found.sample, found.survivors, strict=True))
        nearest, drawn = found.sample.count("2"), found.sample.count("1")
        others = drawn + pairs.count(("0", "1"))
        return cls(
            total=found.total,
            nearest=nearest,
            nearest_broken=pairs.count(("2", "0")),
            others=others,
            drawn=drawn,
            drawn_broken=pairs.count(("1", "0")),
            by=tuple(stage.name for stage in found.stages if stage.sampled and stage.broken),
        )

    def fit(self, stages: Sequence[StageResult]) -> bool:
        """Return whether some stage had as many images as these counts need, as they have in a sound result."""
        attacked, entered = self.nearest + self.drawn, self.nearest + self.others
        sampled = (stage for stage in stages if stage.sampled is not None)
        return any((stage.sampled or 0) >= attacked and stage.entered >= entered for stage in sampled)

    @property
    def broken(self) -> tuple[int, int]:
        """Exact 95 % interval of the number of survivors of the cheap attacks that all attacks would break."""
        if not self.drawn:
            return self.nearest_broken, self.nearest_broken + self.others
        fewest, most = hypergeometric_interval(self.drawn_broken, self.drawn, self.others)
        return self.nearest_broken + fewest, self.nearest_broken + most

    @property
    def estimate(self) -> Estimate:
        """Accuracy under all attacks."""
        survivors, (fewest, most) = self.nearest + self.others, self.broken
        is_older = self.nearest > 0
        share = self.drawn_broken / self.drawn if self.drawn else 0.0
        broken = self.nearest_broken + self.others * share if is_older else fewest
        return Estimate(
            accuracy=(survivors - broken) / self.total,
            low=(survivors - most) / self.total,
            high=(survivors - fewest) / self.total,
        )

    def __str__(self) -> str:
        found = self.estimate
        nearest = f"the {self.nearest} nearest to a wrong class and broke {self.nearest_broken}, and on "
        return (
            f"estimated robust accuracy under all attacks: {100 * found.accuracy:.2f} % [{100 * found.low:.2f}, "
            f"{100 * found.high:.2f}] (95 %, over the choice of the sample). Cheap attacks left "
            f"{self.nearest + self.others} of {self.total} images. AutoAttack's attacks ran on "
            f"{nearest if self.nearest else ''}{self.drawn} drawn at random and broke {self.drawn_broken}. This is not "
            "AutoAttack's number"
        )

    @property
    def disagreement(self) -> str | None:
        """Return a suspicion if the expensive attacks break many images that the cheap ones left."""
        if self.broken[0] <= _DISAGREEMENT * self.total:
            return None
        return (
            f"of {self.nearest + self.drawn} images that the cheap attacks left, "
            f"{self.nearest_broken + self.drawn_broken} fell to {', '.join(self.by)}: this network misleads cheap "
            "attacks, and its gradients may be masked; run autoattack on all images"
        )
