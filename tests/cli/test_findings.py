"""Findings: mistakes in their files, the verdict over seeds, and one complete run."""

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from shell import Robust

from robustcli.errors import RobustCliError, SpecError
from robustcli.specs import experiments
from robustcli.specs.yamlfile import parse_yaml
from robustcli.statistics import mean_interval
from robustcli.store.finding_results import read_finding
from robustcli.workflows.finding import _follow, compare, joint_verdict
from robustcli.workflows.finding_spec import Expectation
from robustcli.workflows.sweep_spec import Sweep

FINDING = """\
# Two ways to train on 64 digits.
name: tiny
seeds: [0, 1]
base:
  data: {name: digits, val_size: 50, train_size: 64}
  architecture: {name: small_cnn, width: 4, hidden: 16}
  threat: {norm: linf, eps: 0.1}
  defense: {name: pgd_at, steps: 2}
  train: {epochs: 2, batch_size: 32, lr: 1e-2, optimizer: adam, check_examples: 20, check_steps: 2, device: cpu}
  evaluate:
    clean: {name: clean, examples: 40}
rows:
  natural: {defense: natural}
  pgd_at: {}
finding:
  claim: A step costs more with an attack in it.
  reference: none
  reduced: everything.
  measure:
    norms: {diagnostic: {name: layer_norms, iterations: 2}, images: train, examples: 10}
  expect:
    - {metric: cost.total, of: pgd_at, above: natural, by: 1}
    - {metric: cost.total, of: pgd_at, below: natural}
    - {metric: clean - epochs.robust.last, of: pgd_at, near: 0, by: 200}
    - {metric: measure.norms.rows.spectral.max, of: natural, above: 0}
    - {metric: epochs.loss.mean, of: natural, above: 0}
    - {metric: epochs.seconds.min, of: natural, near: 0, by: 1000}
"""


def problems(text: str) -> list[str]:
    with pytest.raises(SpecError) as found:
        Sweep.check(parse_yaml(text, "tiny.yaml"))
    return found.value.problems


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("of: pgd_at, above: natural", "of: pgd, above: natural", "there is no row 'pgd'; did you mean 'pgd_at'?"),
        ("of: pgd_at, above: natural", "of: pgd_at", "expected exactly one of above, below, near"),
        ("metric: clean - epochs", "metric: clena - epochs", "there is no evaluation 'clena'; did you mean 'clean'?"),
        ("cost.total", "cost.all", "there is no 'cost.all'"),
        ("measure.norms.", "measure.norm.", "there is no 'measure.norm'; did you mean 'norms'?"),
        ("name: layer_norms", "name: layer_norm", "unknown name 'layer_norm' in diagnostics; did you mean"),
        ("seeds: [0, 1]", "seeds: [0]", "a finding needs two seeds or more"),
    ],
)
def test_mistakes_in_a_finding_are_named(old: str, new: str, problem: str) -> None:
    assert FINDING.count(old) >= 1
    assert any(problem in line for line in problems(FINDING.replace(old, new, 1)))


def expectation(**settings: Any) -> Expectation:
    return Expectation(**{"metric": "m", "of": "a", **settings})


@pytest.mark.parametrize(
    ("settings", "ours", "verdict"),
    [
        ({"above": "b"}, [52.0, 53.0, 54.0], "SHOWN"),
        ({"above": "b", "by": 3}, [52.0, 53.0, 54.0], "NOT SHOWN"),
        ({"above": "b", "by": 30}, [52.0, 53.0, 54.0], "REFUTED"),
        ({"below": "b"}, [52.0, 53.0, 54.0], "REFUTED"),
        ({"below": "b", "times": 2}, [52.0, 53.0, 54.0], "SHOWN"),
        ({"above": "b"}, [40.0, 70.0, 50.0], "NOT SHOWN"),
        ({"above": 51.9, "by": -5}, [52.0, 53.0, 54.0], "SHOWN"),
        ({"near": "b", "by": 6}, [52.0, 53.0, 54.0], "SHOWN"),
        ({"near": "b", "by": 3}, [52.0, 53.0, 54.0], "NOT SHOWN"),
        ({"near": "b", "by": 0.1}, [52.0, 53.0, 54.0], "REFUTED"),
        ({"near": "b", "by": 0.1}, [48.0, 47.0, 46.0], "REFUTED"),
    ],
)
def test_the_interval_over_seeds_decides(settings: dict[str, Any], ours: list[float], verdict: str) -> None:
    found = compare(expectation(**settings), {"m": {"a": ours, "b": [50.0, 50.0, 50.0]}})
    assert found.verdict == verdict


def test_arms_are_paired_by_seed() -> None:
    """Differences between seeds that are common to both arms do not widen the interval."""
    values = {"m": {"a": [11.0, 52.0, 91.5], "b": [10.0, 50.0, 90.0]}}
    assert compare(expectation(above="b"), values).verdict == "SHOWN"
    values["m"]["b"] = [50.0, 90.0, 10.0]
    assert compare(expectation(above="b"), values).verdict == "NOT SHOWN"


def test_one_refuted_part_refutes_the_claim() -> None:
    assert joint_verdict(["SHOWN", "SHOWN"]) == "SHOWN"
    assert joint_verdict(["SHOWN", "NOT SHOWN"]) == "NOT SHOWN"
    assert joint_verdict(["SHOWN", "NOT SHOWN", "REFUTED"]) == "REFUTED"


def test_the_interval_agrees_with_a_table() -> None:
    """Two degrees of freedom: t = 4.3027 (Student's table)."""
    low, high = mean_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), rel=1e-5)


def test_numbers_are_found_at_dotted_paths() -> None:
    found = {"mean_accuracy": 0.5, "rows": [{"norm": 1.0}, {"norm": 3.0}]}
    assert _follow(found, "mean_accuracy", "here") == 50
    assert [_follow(found, f"rows.norm.{how}", "here") for how in ("mean", "max", "first", "last")] == [2, 3, 1, 3]
    with pytest.raises(RobustCliError, match="here: there is no 'norms'; found mean_accuracy, rows"):
        _follow(found, "norms", "here")
    with pytest.raises(RobustCliError, match="not a number"):
        _follow(found, "rows", "here")


def test_every_shipped_finding_is_valid_and_cheap_to_read() -> None:
    for name in experiments.findings():
        sweep = Sweep.read(experiments.find(name))
        assert sweep.finding is not None, name
        assert len(sweep.rows[0].specs) >= 3, name


@pytest.mark.slow
def test_a_finding_is_run_judged_stored_and_read_again(robust: Robust, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(FINDING, encoding="utf-8")
    said = robust("reproduce", "tiny.yaml", "-q", "--out", "tiny.json").require(0)
    assert "REFUTED: A step costs more with an attack in it." in said.out
    found = read_finding(tmp_path / "tiny.json")
    assert [part.verdict for part in found.comparisons] == [
        "SHOWN",
        "REFUTED",
        "SHOWN",
        "SHOWN",
        "SHOWN",
        "SHOWN",
    ]
    assert found.values["cost.total"] == {"natural": [3.0, 3.0], "pgd_at": [7.0, 7.0]}
    losses = [
        fmean(json.loads(line)["loss"] for line in log.read_text().splitlines())
        for log in sorted(tmp_path.glob("runs/tiny.natural/*/train.jsonl"))
    ]
    assert sorted(found.values["epochs.loss.mean"]["natural"]) == pytest.approx(sorted(losses))
    measured = sorted(tmp_path.glob("runs/*/*/diagnostics/norms.json"))
    assert len(measured) == 4
    before = [path.stat().st_mtime_ns for path in measured]
    again = robust("reproduce", "tiny.yaml", "-q", "--out", "again.json").require(0)
    assert again.out == said.out
    assert [path.stat().st_mtime_ns for path in measured] == before
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads((tmp_path / "tiny.json").read_text())
    measured[0].write_text("{", encoding="utf-8")
    robust("reproduce", "tiny.yaml", "-q").require(2, f"{measured[0].relative_to(tmp_path)}: not JSON")


def test_a_plain_sweep_is_no_finding(robust: Robust) -> None:
    robust("reproduce", "sweeps/mnist_defenses").require(2, "a sweep without `finding`", "robust sweep")
    robust("reproduce", "demo/digits_pgd_at", "--out", "x.json").require(
        2, "--out: demo/digits_pgd_at is not a finding"
    )
