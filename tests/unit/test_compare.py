"""Comparison of two results on the same images: counts, claims, and refused comparisons."""

from pathlib import Path
from typing import Any

import pytest
from stored_results import evaluation, run_results
from stored_results import write_raw as write

from robustcli.errors import RobustCliError
from robustcli.reports.compare import conditions
from robustcli.store.files import write_json
from robustcli.store.results import Chain
from robustcli.workflows.compare import compare


@pytest.fixture
def a(tmp_path: Path) -> Path:
    return write(tmp_path / "a.json", pgd=evaluation("1" * 25 + "0" * 10 + "10" * 10))


@pytest.fixture
def b(tmp_path: Path) -> Path:
    return write(tmp_path / "b.json", pgd=evaluation("0" * 25 + "1" * 10 + "10" * 10))


def test_images_are_paired_by_their_place(a: Path, b: Path) -> None:
    pair = compare(a, b)["pgd"]
    assert (pair.both, pair.only_a, pair.only_b, pair.neither, pair.total) == (10, 25, 10, 10, 55)
    assert pair.correct == (35, 20)
    assert pair.p == pytest.approx(0.016674, abs=5e-7)
    assert pair.difference == pytest.approx(15 / 55)
    # Of 35 images 24 against 11 is the first split with p < 0.05.
    assert pair.smallest_claimable == pytest.approx(13 / 55)
    assert list(pair.warnings) == []


def test_the_better_one_is_named_with_the_difference_from_its_side(a: Path, b: Path) -> None:
    forth, back = compare(a, b)["pgd"], compare(b, a)["pgd"]
    low, high = (100 * bound for bound in forth.difference_interval)
    assert forth.claim() == f"A is more robust by 27.27 points [{low:.2f}, {high:.2f}], p = 0.017"
    assert back.claim() == forth.claim().replace("A is", "B is")
    assert 0 < low < 27.27 < high


def test_what_chance_explains_is_not_claimed(a: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.json", pgd=evaluation("0" * 5 + "1" * 20 + "0" * 10 + "10" * 10))
    pair = compare(a, other)["pgd"]
    # Five images, all for A.
    assert pair.p == 0.0625
    assert pair.claim().startswith("no difference can be claimed: A - B is +9.09 points [-")
    assert pair.smallest_claimable is None
    assert compare(a, a)["pgd"].p == 1


def test_the_images_of_the_shorter_one_are_compared(a: Path, tmp_path: Path) -> None:
    short = write(tmp_path / "short.json", pgd=evaluation("0" * 12))
    pair = compare(a, short)["pgd"]
    assert (pair.total, pair.only_a) == (12, 12)
    assert pair.warnings == ["A has 55 images and B 12; the first 12 are compared"]


def test_the_stronger_of_two_attacks_on_one_network_is_named(tmp_path: Path) -> None:
    results = run_results({"pgd": evaluation("1" * 40), "aa": evaluation("1" * 20 + "0" * 20)})
    path = tmp_path / "results.json"
    write_json(path, results.model_copy(update={"chain": Chain(links={"weights": "w"}, digest="")}).to_json())
    pair = compare(path, path, ["pgd:aa"])["pgd:aa"]
    assert pair.claim().startswith("the attack of B is stronger by 50.00 points [")
    assert compare(path, path, ["aa:pgd"])["aa:pgd"].claim().startswith("the attack of A is stronger")


def test_clean_accuracy_has_no_threat_and_is_no_robustness(tmp_path: Path) -> None:
    clean = {"evaluator": "clean", "parameters": {"batch_size": 250}}
    one = write(tmp_path / "one.json", clean=evaluation("1" * 30, **clean))
    other = write(tmp_path / "other.json", clean=evaluation("0" * 30, **clean, eps="4/255"))
    assert compare(one, other)["clean"].claim().startswith("A is more accurate by 100.00 points")


def test_equal_radii_may_be_written_differently(a: Path, tmp_path: Path) -> None:
    same = write(tmp_path / "same.json", pgd=evaluation("1" * 55, eps="16/510"))
    assert compare(a, same)["pgd"].total == 55


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"parameters": {"attack": {"name": "pgd", "steps": 50, "restarts": 1}}}, "attack.steps 20 in A, 50 in B"),
        (
            {"parameters": {"attack": {"name": "pgd", "steps": 20, "loss": "margin"}}},
            "attack.restarts 1 in A, not set in B; attack.loss not set in A, margin in B",
        ),
        (
            {"evaluator": "autoattack", "parameters": {"version": "standard"}},
            "pgd-20-1 in A, autoattack standard in B",
        ),
    ],
)
def test_another_evaluation_under_the_same_name_is_reported(
    a: Path, tmp_path: Path, changed: dict[str, Any], text: str
) -> None:
    other = write(tmp_path / "other.json", pgd=evaluation("1" * 55, **changed))
    pairs = compare(a, other)
    (warning,) = pairs["pgd"].warnings
    assert warning.startswith(f"evaluated differently ({text})")
    assert f"pgd: {warning}" in list(conditions(pairs))


def test_another_batch_size_or_seed_is_the_same_evaluation(a: Path, tmp_path: Path) -> None:
    parameters = {**evaluation("1")["parameters"], "batch_size": 7}
    other = write(tmp_path / "other.json", pgd=evaluation("1" * 55, parameters=parameters, seed=3))
    assert compare(a, other)["pgd"].warnings == []


def test_members_of_a_worst_case_are_compared_too(tmp_path: Path) -> None:
    def worst(steps: int) -> dict[str, Any]:
        members = [{"name": "clean"}, {"name": "attack", "attack": {"name": "pgd", "steps": steps}}]
        return evaluation("1" * 9, evaluator="worst_case", parameters={"members": members})

    one, other = (write(tmp_path / f"{steps}.json", worst=worst(steps)) for steps in (3, 4))
    assert "members.1.attack.steps 3 in A, 4 in B" in compare(one, other)["worst"].warnings[0]


def test_warnings_of_the_evaluations_come_along(a: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.json", pgd=evaluation("1" * 55, warnings=["masked"]))
    assert compare(a, other)["pgd"].warnings == ["B: masked"]


def test_a_claim_about_a_suspect_number_says_so(a: Path, tmp_path: Path) -> None:
    doubted = evaluation("0" * 25 + "1" * 10 + "10" * 10, suspicions=["the gradient is zero"])
    pair = compare(a, write(tmp_path / "doubted.json", pgd=doubted))["pgd"]
    assert pair.claim().endswith("; SUSPECT: B")
    assert "pgd: B: SUSPECT: the gradient is zero" in conditions({"pgd": pair})
    assert "SUSPECT" not in compare(a, a)["pgd"].claim()


def test_several_rows_come_with_a_word_about_their_number(a: Path, b: Path, tmp_path: Path) -> None:
    many = write(tmp_path / "many.json", pgd=evaluation("1" * 55), more=evaluation("1" * 55))
    assert any("1 in 20" in line for line in conditions(compare(many, many)))
    assert not any("1 in 20" in line for line in conditions(compare(many, many, ["more"])))
    assert list(compare(many, b)) == ["pgd"]


def refusal(*arguments: Any) -> str:
    with pytest.raises(RobustCliError) as caught:
        compare(*arguments)
    return str(caught.value)


def test_other_images_are_refused(a: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.json", "e" * 64, pgd=evaluation("1" * 55))
    assert "different images (digests dddddddddddd and eeeeeeeeeeee)" in refusal(a, other)


def test_other_threats_are_refused_and_what_is_left_is_named(tmp_path: Path) -> None:
    one = write(tmp_path / "one.json", pgd=evaluation("1"), same=evaluation("1"))
    other = write(tmp_path / "other.json", pgd=evaluation("1", norm="l2", eps="0.5"), same=evaluation("1"))
    text = refusal(one, other)
    assert "different threats (pgd: linf 8/255 in A, l2 0.5 in B)" in text
    assert "--key same" in text
    assert list(compare(one, other, ["same"])) == ["same"]


def test_a_missing_evaluation_is_named_with_the_nearest(a: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.json", autoattack=evaluation("1" * 55))
    assert "have no evaluation in common: found pgd in A, autoattack in B" in refusal(a, other)
    assert f"{a}: has no evaluation 'pdg'; did you mean 'pgd'?" in refusal(a, other, ["pdg"])


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"hello", "not JSON"),
        (b"\xff\xfe\x00", "not text"),
        (b"[]", "not results of `robust train` or `robust eval`: found []; expected the keys schema, data"),
        (b'{"schema": 1, "evaluations": {}}', "not results of `robust train`"),
        (b'{"schema": 9, "data": {"digest": ""}, "evaluations": {}}', "schema: found 9; expected 1 to 2"),
        (
            b'{"schema": 1, "data": {}, "evaluations": {"pgd": {}}}',
            "evaluations.pgd.norm: found nothing; expected this",
        ),
        (b'{"schema": 1, "data": {}, "evaluations": {"pgd": 3}}', "evaluations.pgd: found 3; expected keys and values"),
    ],
)
def test_another_file_is_refused(a: Path, tmp_path: Path, content: bytes, text: str) -> None:
    (tmp_path / "other.json").write_bytes(content)
    assert text in refusal(a, tmp_path / "other.json")


def test_survivors_that_are_none_are_refused(a: Path, tmp_path: Path) -> None:
    for survivors in ("", "012", None):
        assert "expected a 0 or a 1 for every image" in refusal(a, write(tmp_path / "o", pgd=evaluation(survivors)))


def test_what_is_not_there_is_named(a: Path, tmp_path: Path) -> None:
    assert "gone.json: no such file" in refusal(a, tmp_path / "gone.json")
    assert "found no results.json in this folder" in refusal(a, tmp_path)
