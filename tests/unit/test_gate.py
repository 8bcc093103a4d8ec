"""`robust gate`: conditions that hold or fail, and invalid conditions."""

from pathlib import Path
from typing import Any

import pytest
from stored_results import evaluation, write_raw

from robustcli.errors import RobustCliError
from robustcli.workflows.gate import gate


@pytest.fixture
def result(tmp_path: Path) -> Path:
    clean = evaluation("1" * 90 + "0" * 10, evaluator="clean")
    return write_raw(
        tmp_path / "new.json",
        clean=clean,
        pgd=evaluation("1" * 50 + "0" * 50),
        autoattack=evaluation("1" * 41 + "0" * 59),
    )


@pytest.mark.parametrize(
    ("condition", "evaluation", "passed"),
    [
        ("robust>=0.41", "autoattack", True),
        ("robust >= 0.42", "autoattack", False),
        ("pgd>=1/2", "pgd", True),
        ("pgd>=0.51", "pgd", False),
        ("clean>=0.9", "clean", True),
        ("clean>=0.91", "clean", False),
    ],
)
def test_a_minimum_is_reached_or_not(result: Path, condition: str, evaluation: str, passed: bool) -> None:
    (outcome,) = gate(result, [condition])
    assert (outcome.evaluation, outcome.passed) == (evaluation, passed)
    assert "of 100 images" in outcome.text


@pytest.mark.parametrize(("least", "passed"), [("0.38", True), ("0.39", False), ("0.42", False)])
def test_a_minimum_is_also_reached_by_the_estimate_from_a_sample(tmp_path: Path, least: str, passed: bool) -> None:
    guess = {"accuracy": 38 / 100, "low": 0.3, "high": 38 / 100}
    quick = evaluation("1" * 41 + "0" * 59, evaluator="quick", sample="1" * 10 + "0" * 90, estimate=guess)
    (outcome,) = gate(write_raw(tmp_path / "new.json", quick=quick), [f"robust>={least}"])
    assert outcome.passed == passed
    assert outcome.text.startswith("0.4100")
    assert outcome.text.endswith("; estimated from a sample 0.3800 [0.3000, 0.3800]")


def test_an_estimate_is_lower_than_the_accuracy_of_a_weaker_attack(tmp_path: Path) -> None:
    guess = {"accuracy": 38 / 100, "low": 0.3, "high": 38 / 100}
    quick = evaluation("1" * 41 + "0" * 59, evaluator="quick", sample="1" * 10 + "0" * 90, estimate=guess)
    found = {"pgd": evaluation("1" * 40 + "0" * 60), "quick": quick}
    (outcome,) = gate(write_raw(tmp_path / "new.json", **found), ["robust>=0.39"])
    assert (outcome.evaluation, outcome.passed) == ("quick", False)


def drop(result: Path, survivors: str, max_drop: float) -> bool:
    baseline = write_raw(result.with_name("old.json"), pgd=evaluation(survivors))
    (outcome,) = gate(result, baseline=baseline, max_drop=max_drop)
    assert outcome.evaluation == "pgd"
    return outcome.passed


def test_a_drop_fails_if_it_is_large_and_significant(result: Path) -> None:
    # 10 images lost and none gained: p = 0.002.
    assert not drop(result, "1" * 60 + "0" * 40, 0.05)
    assert drop(result, "1" * 60 + "0" * 40, 0.1)
    # Four images lost: a drop of 4 points with p = 0.125.
    assert drop(result, "1" * 54 + "0" * 46, 0.01)
    # An improvement.
    assert drop(result, "1" * 10 + "0" * 90, 0.0)


@pytest.mark.parametrize(
    ("minima", "settings", "text"),
    [
        ([], {}, "found no condition"),
        (["robust>=0.4"], {"keys": ["pgd"]}, "--key: only with --baseline"),
        (["robust>0.4"], {}, "expected NAME>=FRACTION"),
        (["robust>=41"], {}, "a fraction from 0 to 1"),
        (["robust>=1/0"], {}, "a fraction from 0 to 1"),
        (["robbust>=0.4"], {}, "did you mean 'robust'"),
        ([], {"max_drop": 0.1}, "need each other"),
        ([], {"baseline": Path("old.json")}, "need each other"),
        ([], {"baseline": Path("old.json"), "max_drop": 2.0}, "expected a fraction"),
        ([], {"baseline": Path("gone.json"), "max_drop": 0.1}, "gone.json: no such file"),
    ],
)
def test_other_conditions_are_refused(result: Path, minima: list[str], settings: dict[str, Any], text: str) -> None:
    with pytest.raises(RobustCliError, match=text):
        gate(result, minima, **settings)


def test_a_suspect_number_brings_its_reasons(tmp_path: Path) -> None:
    doubted = evaluation("1" * 50 + "0" * 50, suspicions=["the gradient is zero"])
    new = write_raw(tmp_path / "new.json", pgd=doubted, clean=evaluation("1" * 90 + "0" * 10, evaluator="clean"))
    old = write_raw(tmp_path / "old.json", pgd=evaluation("1" * 50 + "0" * 50))
    pgd, clean = gate(new, ["pgd>=0.1", "clean>=0.1"])
    assert (pgd.suspicions, clean.suspicions) == (["the gradient is zero"], [])
    (drop,) = gate(new, baseline=old, max_drop=0.1)
    assert drop.suspicions == ["the gradient is zero"]
