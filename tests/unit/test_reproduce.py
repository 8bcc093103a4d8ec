"""A claim compared with results of one or several seeds: which gap is within the noise."""

from statistics import mean, stdev

import pytest
from stored_results import evaluation, run_results

from robustcli.cli.verdicts import require
from robustcli.errors import CheckFailedError
from robustcli.store.evaluations import Evaluation
from robustcli.store.provenance import DataRecord, Sizes
from robustcli.store.results import Claim, RunResults
from robustcli.workflows.reproduce import Comparison, compare_with_claim


def run(correct: int, total: int = 100, *, seed: int = 0, test: int = 100) -> RunResults:
    data = DataRecord(digest="d" * 64, sizes=Sizes(train=10, val=5, test=test), decode="")
    return run_results({"pgd": evaluation("1" * correct + "0" * (total - correct))}, seed=seed, data=data)


def compared(claimed: float, *results: RunResults, tolerance: float = 0.0) -> Comparison:
    claim = Claim(source="a paper", metrics={"pgd": claimed}, tolerance=tolerance)
    (found,) = compare_with_claim(results, claim)
    return found


def test_one_seed_is_judged_by_the_drawing_of_its_images() -> None:
    found = compared(0.55, run(50))
    assert (found.low, found.high) == pytest.approx((0.398, 0.602), abs=1e-3)
    assert found.verdict == "reproduced"
    assert "inside the noise" in found.sentence
    assert "the noise of training needs several seeds" in found.sentence


def test_several_seeds_are_judged_by_one_more_run() -> None:
    results = [run(count, seed=seed) for seed, count in enumerate((50, 52, 54))]
    found = compared(0.58, *results)
    # t with 2 degrees of freedom at 0.975 is 4.3027; all test images are used.
    reach = 4.3027 * stdev([0.5, 0.52, 0.54]) * (1 + 1 / 3) ** 0.5
    assert found.got == pytest.approx(mean([0.5, 0.52, 0.54]))
    assert (found.low, found.high) == pytest.approx((0.52 - reach, 0.52 + reach), abs=1e-5)
    assert found.is_inside_noise
    assert "the gap of -6.0 points is inside the noise" in found.sentence
    assert compared(0.63, *results).verdict == "below the claim"
    assert compared(0.4, *results).verdict == "above the claim"
    assert found.verdict == "inside the noise"
    assert compared(0.54, *results, tolerance=0.03).verdict == "reproduced"
    equal = [run(50, seed=seed) for seed in range(2)]
    within = compared(0.51, *equal, tolerance=0.02)
    assert (within.verdict, within.is_inside_noise) == ("reproduced", False)
    assert "larger than the noise, and within the tolerance of 2 points" in within.sentence


def test_a_part_of_the_test_images_adds_the_noise_of_their_drawing() -> None:
    equal = [run(50, seed=seed, test=10_000) for seed in range(3)]
    found = compared(0.6, *equal)
    # No spread over the seeds: only the drawing of 100 of 10,000 images is left.
    assert found.high - found.got == pytest.approx(4.3027 * (0.25 / 100 * 0.99) ** 0.5, abs=1e-4)
    whole = compared(0.6, *(run(50, seed=seed) for seed in range(3)))
    assert (whole.low, whole.high) == (0.5, 0.5)
    assert whole.verdict == "below the claim"


def test_only_the_named_verdict_fails() -> None:
    trusted, suspect = (Evaluation.model_validate(evaluation("10", suspicions=why)) for why in ([], ["odd"]))
    require(None, [("pgd", suspect)])
    require("suspect", [("pgd", trusted)])
    with pytest.raises(CheckFailedError, match=r"^aa: the verdict is SUSPECT"):
        require("suspect", [("pgd", trusted), ("aa", suspect)])
