"""What n images say about the population they were drawn from: of one network, and of two on the same images.

Also what several seeds say about a mean.
"""

from collections.abc import Sequence
from statistics import mean, stdev


def clopper_pearson(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact binomial interval of an accuracy: (low, high), fractions.

    It covers only the drawing of the images; seeds of training and of attacks vary besides.

    Args:
        correct: images counted as correct, 0..total.
        total: images evaluated, at least 1.
        confidence: probability that the interval covers the population's accuracy, in (0, 1).

    Reference: Clopper and Pearson, Biometrika 1934.
    """
    if total < 1:
        raise ValueError(f"an interval needs at least 1 image, found {total}")
    if not 0 <= correct <= total:
        raise ValueError(f"{correct} correct of {total} is not a count")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")
    # Here, not above: commands that show no interval should not wait for scipy.
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    low = 0.0 if correct == 0 else float(betaincinv(correct, total - correct + 1, tail))
    high = 1.0 if correct == total else float(betaincinv(correct + 1, total - correct, 1 - tail))
    return low, high


def hypergeometric_interval(found: int, sampled: int, total: int, confidence: float = 0.95) -> tuple[int, int]:
    """Exact interval of the number of items with a property, from a sample drawn without replacement: (low, high).

    All numbers under which neither as few as `found` nor as many would be less probable than (1 - confidence) / 2. It
    covers the true number in at least `confidence` of all samples.

    Args:
        found: items with the property in the sample, 0..sampled.
        sampled: drawn, 1..total.
        total: there are.
        confidence: probability that the interval covers the true number, in (0, 1).
    """
    if not 0 <= found <= sampled <= total or not sampled:
        raise ValueError(f"{found} of {sampled} of {total} are not counts of a sample")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")
    # Here, not above: commands that show no such interval should not wait for scipy.
    import numpy as np
    from scipy.stats import hypergeom

    tail = (1 - confidence) / 2
    numbers = np.arange(found, total - (sampled - found) + 1)
    as_many = hypergeom.sf(found - 1, total, numbers, sampled)
    as_few = hypergeom.cdf(found, total, numbers, sampled)
    plausible = numbers[(as_many > tail) & (as_few > tail)]
    return int(plausible[0]), int(plausible[-1])


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p-value of two networks being equally accurate, from the images on which they differ.

    If they were, each of those images would fall to either side like a fair coin; the images on which both
    are right, or both wrong, say nothing about the difference.

    Args:
        only_a: images on which only A is right.
        only_b: images on which only B is right.

    Reference: McNemar, Psychometrika 1947, with the binomial tail in place of its approximation.
    """
    if only_a < 0 or only_b < 0:
        raise ValueError(f"{only_a} and {only_b} are not counts")
    from scipy.special import bdtr

    count = only_a + only_b
    return min(1.0, 2 * float(bdtr(min(only_a, only_b), count, 0.5))) if count else 1.0


def is_at_chance(right: int, total: int, classes: int) -> bool:
    """Return whether an accuracy is consistent with guessing.

    An exact one-sided binomial test against 1 / classes at level 0.001. With few images even 100 % can pass this test,
    so an accuracy more than half-way from chance to 1 never counts as chance.
    """
    from scipy.special import bdtrc

    chance = 1 / classes
    return right / total <= (1 + chance) / 2 and float(bdtrc(right - 1, total, chance)) >= 1e-3


def paired_difference(only_a: int, only_b: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of accuracy A - accuracy B over the drawing of the images: (low, high), fractions.

    The difference is p (2 q - 1), where p is how often the two differ and q how often it is then A that is
    right. Both get their exact interval, and the ends are the extremes of the product. So 0 lies outside
    exactly when `mcnemar` is below 1 - confidence, and two networks that differ nowhere do not get a width of 0.
    The price is width: it covers the true difference in more than `confidence` of all cases.

    Args:
        only_a: images on which only A is right.
        only_b: images on which only B is right.
        total: images evaluated, at least 1.
        confidence: of each of the two intervals, in (0, 1).
    """
    differing = only_a + only_b
    rarest, commonest = clopper_pearson(differing, total, confidence)
    low, high = (-1.0, 1.0)
    if differing:
        low, high = (2 * share - 1 for share in clopper_pearson(only_a, differing, confidence))
    return low * (commonest if low < 0 else rarest), high * (rarest if high < 0 else commonest)


def smallest_excess(differing: int, level: float = 0.05) -> int | None:
    """How many more of the images on which two networks differ one must win for `mcnemar` to be below `level`.

    None where winning all of them would not do: at level 0.05, where they differ on fewer than 6.

    Args:
        differing: images on which exactly one of the two is right.
        level: what the p-value must be below, in (0, 1).
    """
    if differing < 0 or not 0 < level < 1:
        raise ValueError(f"{differing} is not a count, or {level} is not between 0 and 1")
    # The p-value grows with the images lost.
    excesses = range(differing % 2, differing + 1, 2)
    return next((more for more in excesses if mcnemar((differing - more) // 2, (differing + more) // 2) < level), None)


def unseen_at_most(sampled: int, total: int, confidence: float = 0.95) -> int:
    """How many of `total` may have a property that none of `sampled` has, drawn without replacement: an upper bound.

    The largest number that would stay unseen in the sample with a probability of more than 1 - confidence; of many
    it is about 3 / sampled of the total.

    Args:
        sampled: drawn, 1..total.
        total: there are.
        confidence: probability with which the bound holds, in (0, 1).
    """
    unseen, number = 1.0, 0
    while number < total - sampled:
        # Of `number` with the property none is drawn: the next one is not drawn either.
        unseen *= (total - sampled - number) / (total - number)
        if unseen <= 1 - confidence:
            break
        number += 1
    return number


def most_by_chance(count: int, chance: float, confidence: float = 0.999) -> int:
    """Number of `count` independent events, each of probability `chance`, that is exceeded only with 1 - confidence."""
    from scipy.stats import binom

    return int(binom.ppf(confidence, count, chance)) if chance else 0


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Student's t interval of a mean: (low, high).

    Args:
        values: independent measurements, such as one for each seed; at least 2.
        confidence: probability that the interval covers the mean of the population, in (0, 1).

    Reference: Student, Biometrika 1908.
    """
    if len(values) < 2:
        raise ValueError(f"an interval of a mean needs at least 2 values, found {len(values)}")
    center = mean(values)
    reach = student_quantile((1 + confidence) / 2, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return center - reach, center + reach


def student_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t distribution with some degrees of freedom, at least 1."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))
