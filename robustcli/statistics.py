"""Intervals and tests over the drawing of the images: for one network, and for two on the same images."""


def clopper_pearson(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact binomial interval of an accuracy: (low, high), fractions.

    It covers only the drawing of the images; results also vary with the seeds of training and of attacks.

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
    # Imported here, because it is slow and most commands show no interval.
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    low = 0.0 if correct == 0 else float(betaincinv(correct, total - correct + 1, tail))
    high = 1.0 if correct == total else float(betaincinv(correct + 1, total - correct, 1 - tail))
    return low, high


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p-value for two networks being equally accurate.

    Under this hypothesis every image on which they differ falls to either side like a fair coin; images on which both
    are right, or both wrong, say nothing about the difference.

    Args:
        only_a: number of images that only A classifies correctly.
        only_b: number of images that only B classifies correctly.

    Reference: McNemar, Psychometrika 1947, with the binomial tail in place of its approximation.
    """
    if only_a < 0 or only_b < 0:
        raise ValueError(f"{only_a} and {only_b} are not counts")
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


def paired_difference(only_a: int, only_b: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of accuracy A - accuracy B over the drawing of the images: (low, high), fractions.

    The difference is p (2 q - 1), where p is the share of images on which the two differ and q the share of those that
    A classifies correctly. Both get their exact interval, and the ends are the extremes of the product. So 0 lies
    outside exactly if `mcnemar` is below 1 - confidence, and the interval of two networks that differ on no image has
    a positive width. It is conservative: it covers the true difference in more than `confidence` of all cases.

    Args:
        only_a: number of images that only A classifies correctly.
        only_b: number of images that only B classifies correctly.
        total: number of images evaluated, at least 1.
        confidence: of each of the two intervals, in (0, 1).
    """
    differing = only_a + only_b
    rarest, commonest = clopper_pearson(differing, total, confidence)
    low, high = (-1.0, 1.0)
    if differing:
        low, high = (2 * share - 1 for share in clopper_pearson(only_a, differing, confidence))
    return low * (commonest if low < 0 else rarest), high * (rarest if high < 0 else commonest)


def smallest_excess(differing: int, level: float = 0.05) -> int | None:
    """Smallest lead, in images, with which `mcnemar` is below `level`; None if winning all of them is not enough.

    Args:
        differing: number of images on which exactly one of the two networks is right.
        level: bound of the p-value, in (0, 1).
    """
    if differing < 0 or not 0 < level < 1:
        raise ValueError(f"{differing} is not a count, or {level} is not between 0 and 1")
    from scipy.special import bdtr

    lost = range(differing // 2 + 1)
    # The p-value grows with the images lost, so the last count that is below the level is the answer.
    below = sum(2 * bdtr(list(lost), differing, 0.5) < level)
    return differing - 2 * (int(below) - 1) if below else None


def unseen_at_most(sampled: int, total: int, confidence: float = 0.95) -> int:
    """Upper bound of the number among `total` that have a property which none of `sampled`, drawn at random, has.

    The largest number that would stay unseen with a probability of more than 1 - confidence; for large samples about
    3 / sampled of the total.

    Args:
        sampled: size of the sample, drawn without replacement, 1..total.
        total: size of the population.
        confidence: probability with which the bound holds, in (0, 1).
    """
    unseen, number = 1.0, 0
    while number < total - sampled:
        # None of `number` with the property is drawn; nor is the next one.
        unseen *= (total - sampled - number) / (total - number)
        if unseen <= 1 - confidence:
            break
        number += 1
    return number
