import pytest

from robustcli.statistics import clopper_pearson


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        (0, 100, 0.0, 0.036217),
        (1, 100, 0.000253, 0.054459),
        (50, 100, 0.398321, 0.601679),
        (28, 64, 0.313735, 0.567241),
        (500, 1000, 0.468549, 0.531451),
        (5617, 10000, 0.551908, 0.571456),
        (10000, 10000, 0.999631, 1.0),
    ],
)
def test_interval_has_the_published_values(correct: int, total: int, low: float, high: float) -> None:
    assert clopper_pearson(correct, total) == pytest.approx((low, high), abs=1e-6)


def test_zero_breaks_give_the_rule_of_three() -> None:
    # One-sided 95 % is two-sided 90 %: the bound is 1 - 0.05 ** (1 / n).
    _, high = clopper_pearson(0, 300, confidence=0.9)
    assert high == pytest.approx(1 - 0.05 ** (1 / 300), rel=1e-9)


def test_more_confidence_is_wider() -> None:
    narrow, wide = clopper_pearson(7, 10, 0.9), clopper_pearson(7, 10, 0.99)
    assert wide[0] < narrow[0] < 0.7 < narrow[1] < wide[1]


@pytest.mark.parametrize(
    ("correct", "total", "confidence"), [(0, 0, 0.95), (-1, 3, 0.95), (4, 3, 0.95), (1, 3, 0.0), (1, 3, 1.0)]
)
def test_what_is_not_a_count_is_refused(correct: int, total: int, confidence: float) -> None:
    with pytest.raises(ValueError, match=r"found 0|not a count|not between"):
        clopper_pearson(correct, total, confidence)
