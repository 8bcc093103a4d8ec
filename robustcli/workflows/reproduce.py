"""`robust reproduce`: results of one or several seeds next to a published claim."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, variance

from robustcli.statistics import student_quantile
from robustcli.store.evaluations import Evaluation
from robustcli.store.results import Claim, RunResults


@dataclass(frozen=True)
class Comparison:
    """A claimed accuracy next to the reproduced one.

    Args:
        metric: name of the evaluation.
        claimed, got: fractions; for several seeds, got is the mean.
        low, high: 95 % interval. For one seed: of its accuracy, over the sampling of the images. For several seeds: of
            the accuracy of one more run with another seed, which the claim is assumed to be.
        tolerance: tolerance of the claim, on both sides of the interval.
        accuracies: one for each seed.
        images: number of images evaluated.
    """

    metric: str
    claimed: float
    got: float
    low: float
    high: float
    tolerance: float
    accuracies: tuple[float, ...]
    images: int

    @property
    def gap(self) -> float:
        """Reproduced minus claimed accuracy."""
        return self.got - self.claimed

    @property
    def is_inside_noise(self) -> bool:
        """Whether the claim lies in the interval, without tolerance."""
        return self.low <= self.claimed <= self.high

    @property
    def verdict(self) -> str:
        """Return "reproduced", "inside the noise", or the direction of the gap.

        For one seed, the claim is reproduced if it lies within the tolerance of the interval. For several seeds, the
        mean must be within the tolerance of the claim: few seeds give a wide interval, which shows little.
        """
        if len(self.accuracies) > 1:
            if abs(self.gap) <= self.tolerance:
                return "reproduced"
            if self.is_inside_noise:
                return "inside the noise"
        elif self.low - self.tolerance <= self.claimed <= self.high + self.tolerance:
            return "reproduced"
        return "above the claim" if self.gap > 0 else "below the claim"

    @property
    def sentence(self) -> str:
        """The gap, and if it is inside the noise."""
        text = f"{self.metric}: the gap of {100 * self.gap:+.1f} points is"
        bounds = f"[{100 * self.low:.1f}, {100 * self.high:.1f}] %"
        noise = (
            f"the 95 % interval {bounds} for one more run, from {len(self.accuracies)} seeds"
            if len(self.accuracies) > 1
            else f"the 95 % interval {bounds} over the drawing of {self.images} images; the noise of training needs "
            "several seeds, such as seed=0,1,2"
        )
        if self.is_inside_noise:
            return f"{text} inside the noise: the claim lies in {noise}"
        within = (
            f", and within the tolerance of {100 * self.tolerance:g} points" if self.verdict == "reproduced" else ""
        )
        return f"{text} larger than the noise{within}: the claim lies outside {noise}"


def compare_with_claim(results: Sequence[RunResults], claim: Claim) -> list[Comparison]:
    """Compare finished runs, which differ only in their seed, with a claim, metric by metric."""
    compared = []
    for metric, claimed in claim.metrics.items():
        evaluations = [found.evaluations[metric] for found in results]
        accuracies = tuple(found.accuracy for found in evaluations)
        low, high = _interval(evaluations, results[0].data.sizes.test)
        images = evaluations[0].total
        compared.append(Comparison(metric, claimed, mean(accuracies), low, high, claim.tolerance, accuracies, images))
    return compared


def _interval(evaluations: Sequence[Evaluation], test_images: int) -> tuple[float, float]:
    """Interval of one more run: Student's t over the seeds, and the drawing of the images from the test images.

    All seeds are evaluated on the same images, so that part of the noise does not average out. It is 0 if all test
    images are used, as in the claim.
    """
    if len(evaluations) == 1:
        return evaluations[0].interval
    accuracies = [found.accuracy for found in evaluations]
    center, images, seeds = mean(accuracies), evaluations[0].total, len(accuracies)
    of_images = center * (1 - center) / images * max(0.0, 1 - images / test_images)
    spread = (variance(accuracies) * (1 + 1 / seeds) + of_images) ** 0.5
    reach = student_quantile(0.975, seeds - 1) * spread
    return max(0.0, center - reach), min(1.0, center + reach)
