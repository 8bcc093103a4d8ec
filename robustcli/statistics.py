"""How far an accuracy measured on n images may lie from that of the population they were drawn from."""


def clopper_pearson(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact binomial interval of an accuracy: (low, high), fractions.

    It speaks of the drawing of the images alone; seeds of training and of attacks vary besides.

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
