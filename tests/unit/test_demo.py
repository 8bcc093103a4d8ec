"""The demo: its numbers agree with the README, which states how they were measured."""

import re
from pathlib import Path

import pytest
import torch
from stored_results import evaluation, run_results

from robustcli.cli.reproduce import print_agreement
from robustcli.specs import experiments
from robustcli.specs.spec import ExperimentSpec
from robustcli.workflows.demo import EXPECTED, MEASURED_WITH, SPECS, TOLERANCE, Agreement, agreements, one_thread

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_readme_has_the_same_numbers_and_their_conditions() -> None:
    table = README.partition("natural training")[2].partition("```")[0]
    rows = [re.findall(r"(\d+\.\d) \[", line) for line in table.splitlines() if "[" in line]
    expected = [[f"{100 * EXPECTED[name][key]:.1f}" for name in EXPECTED] for key in ("clean", "pgd_50", "autoattack")]
    assert rows == expected
    assert f"`robust demo` with {MEASURED_WITH}" in README
    assert f"by up to {100 * TOLERANCE:g} points" in README


def test_the_specs_of_the_demo_have_the_evaluations_that_are_expected() -> None:
    for name in SPECS:
        spec = ExperimentSpec.read(experiments.find(name))
        assert list(spec.evaluate) == list(EXPECTED[spec.name])


def results(autoattack: int) -> list[Agreement]:
    counts = {"clean": 343, "pgd_50": 41, "autoattack": autoattack}
    found = {key: evaluation("1" * count + "0" * (360 - count)) for key, count in counts.items()}
    return list(agreements(run_results(found, name="digits_natural")))


def test_numbers_within_the_tolerance_agree(capsys: pytest.CaptureFixture[str]) -> None:
    # 14.4 %, which is 3.0 points more than 11.4 %.
    assert all(one.agrees for one in results(52))
    print_agreement(results(52))
    assert capsys.readouterr().out.startswith(f"All 3 numbers agree with those of the README ({MEASURED_WITH})")


def test_a_number_that_differs_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    print_agreement(results(54))
    said = capsys.readouterr().out
    assert "1 of 3 numbers differ" in said
    assert "digits_natural, autoattack: found 15.0 %; expected 11.4 %" in said
    assert "here is torch " in said


def test_the_demo_computes_on_one_thread_on_every_machine() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
