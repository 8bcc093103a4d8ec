import pytest
from scipy.stats import binom, binomtest, sem, t

from robustcli.statistics import (
    clopper_pearson,
    mcnemar,
    mean_interval,
    paired_difference,
    smallest_excess,
    unseen_at_most,
)


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


@pytest.mark.parametrize(("sampled", "share"), [(300, 0.0099), (1000, 0.0030), (3000, 0.0010)])
def test_of_many_images_a_sample_without_a_break_leaves_about_three_in_its_size(sampled: int, share: float) -> None:
    assert unseen_at_most(sampled, 1_000_000) / 1_000_000 == pytest.approx(1 - 0.05 ** (1 / sampled), rel=5e-3)
    assert unseen_at_most(sampled, 1_000_000) / 1_000_000 == pytest.approx(share, abs=5e-5)


@pytest.mark.parametrize("values", [[51.2, 50.4], [50.0, 51.0, 52.0], [0.3, 0.35, 0.31, 0.4, 0.33]])
def test_the_interval_over_seeds_is_that_of_student(values: list[float]) -> None:
    mean = sum(values) / len(values)
    assert mean_interval(values) == pytest.approx(t.interval(0.95, len(values) - 1, mean, sem(values)))
    assert mean_interval(values, 0.99)[0] < mean_interval(values)[0] < mean < mean_interval(values)[1]


def test_one_seed_has_no_interval() -> None:
    with pytest.raises(ValueError, match="needs at least 2 values"):
        mean_interval([0.5])


def test_more_confidence_is_wider() -> None:
    narrow, wide = clopper_pearson(7, 10, 0.9), clopper_pearson(7, 10, 0.99)
    assert wide[0] < narrow[0] < 0.7 < narrow[1] < wide[1]


@pytest.mark.parametrize(
    ("correct", "total", "confidence"), [(0, 0, 0.95), (-1, 3, 0.95), (4, 3, 0.95), (1, 3, 0.0), (1, 3, 1.0)]
)
def test_what_is_not_a_count_is_refused(correct: int, total: int, confidence: float) -> None:
    with pytest.raises(ValueError, match=r"found 0|not a count|not between"):
        clopper_pearson(correct, total, confidence)


# Two networks on the same images


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [(10, 25, 0.016674), (5, 5, 1.0), (0, 6, 0.03125), (30, 50, 0.032993), (100, 150, 0.001883), (0, 0, 1.0)],
)
def test_mcnemar_has_the_published_values(only_a: int, only_b: int, p: float) -> None:
    assert mcnemar(only_a, only_b) == pytest.approx(p, abs=5e-7)
    assert mcnemar(only_b, only_a) == mcnemar(only_a, only_b)


@pytest.mark.parametrize(("only_a", "only_b"), [(1, 0), (3, 9), (17, 40), (500, 640), (5000, 4700)])
def test_mcnemar_is_the_binomial_test_of_a_fair_coin(only_a: int, only_b: int) -> None:
    assert mcnemar(only_a, only_b) == pytest.approx(binomtest(only_a, only_a + only_b).pvalue, rel=1e-9)


def test_the_interval_leaves_0_out_exactly_where_the_test_rejects() -> None:
    decisions = set()
    for differing in range(40):
        for only_a in range(differing + 1):
            low, high = paired_difference(only_a, differing - only_a, 50)
            is_rejected = mcnemar(only_a, differing - only_a) < 0.05
            assert (low > 0 or high < 0) == is_rejected
            assert low <= (2 * only_a - differing) / 50 <= high
            decisions.add(is_rejected)
    assert decisions == {False, True}


def test_the_interval_of_b_against_a_is_the_mirror_image() -> None:
    low, high = paired_difference(13, 4, 90)
    assert paired_difference(4, 13, 90) == pytest.approx((-high, -low))


def test_two_networks_that_differ_nowhere_may_differ_on_other_images() -> None:
    # As often as an event that was never seen in 100 images.
    low, high = paired_difference(0, 0, 100)
    assert (low, high) == pytest.approx((-0.036217, 0.036217), abs=1e-6)


@pytest.mark.parametrize("differ", [0.02, 0.2, 0.6, 0.95])
@pytest.mark.parametrize("a_is_right", [0.0, 0.3, 0.5, 0.9])
def test_the_interval_covers_the_true_difference_often_enough(differ: float, a_is_right: float) -> None:
    total, covered = 30, 0.0
    for differing in range(total + 1):
        for only_a in range(differing + 1):
            low, high = paired_difference(only_a, differing - only_a, total)
            if low - 1e-12 <= differ * (2 * a_is_right - 1) <= high + 1e-12:
                covered += binom.pmf(differing, total, differ) * binom.pmf(only_a, differing, a_is_right)
    assert covered >= 0.95


@pytest.mark.parametrize("differing", [*range(6, 60), 250, 251, 4000])
def test_the_smallest_excess_is_the_first_that_the_test_rejects(differing: int) -> None:
    excess = smallest_excess(differing)
    assert excess is not None
    assert (differing - excess) % 2 == 0
    lost = (differing - excess) // 2
    assert mcnemar(lost, differing - lost) < 0.05
    assert lost + 1 > differing - lost - 1 or mcnemar(lost + 1, differing - lost - 1) >= 0.05


def test_on_five_images_or_fewer_nothing_can_be_claimed() -> None:
    assert [smallest_excess(differing) for differing in range(7)] == [None] * 6 + [6]
    # Below the level, not at it: 6 of 6 have p = 2 / 2**6.
    assert smallest_excess(6, level=2 / 2**6) is None


def test_negative_counts_are_refused() -> None:
    for call in (lambda: mcnemar(-1, 2), lambda: smallest_excess(-1), lambda: smallest_excess(8, 0.0)):
        with pytest.raises(ValueError, match=r"not counts|not a count|not between"):
            call()
    with pytest.raises(ValueError, match="not a count"):
        paired_difference(3, 4, 5)
