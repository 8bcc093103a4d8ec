"""`robust plan --device-rates`: estimates for another device, from a plan that was measured there."""

import json
from pathlib import Path
from typing import Any

import pytest
from shell import Robust

from robustcli.architectures import ImageShape
from robustcli.measuring.network_profile import profile_of
from robustcli.specs.spec import ExperimentSpec


def test_a_run_is_estimated_from_the_rates_of_another_device(robust: Robust, tiny: Path, tmp_path: Path) -> None:
    there = tmp_path / "there.json"
    plan = json.loads(robust("plan", tiny, "--json").require(0).out)
    plan["provenance"]["device"] = "NVIDIA H200"
    there.write_text(json.dumps(plan), encoding="utf-8")

    def found(*overrides: str) -> Any:
        return json.loads(robust("plan", tiny, *overrides, "--device-rates", there, "--json").require(0).out)

    same = found()
    assert same["device"] == "NVIDIA H200"
    # A spec is estimated as it was measured.
    assert same["training_seconds"] == pytest.approx(plan["training"]["seconds"])
    measured = plan["evaluations"]["pgd"]["seconds"]["low"]
    assert same["evaluation_seconds"]["pgd"]["low"] == pytest.approx(measured, rel=0.05)
    # Training costs as much more as it has updates and multiply-accumulates.
    wider = found("architecture.width=8", "train.epochs=5")
    spec = ExperimentSpec.read(tiny)
    shape = ImageShape(1, 8, 8, 10)
    macs = profile_of(spec.architecture, shape).macs
    growth = 5 * profile_of(ExperimentSpec.read(tiny, ["architecture.width=8"]).architecture, shape).macs / macs
    assert wider["training_seconds"] == pytest.approx(growth * plan["training"]["seconds"])
    robust("plan", tiny, "--device-rates", there).require(0, "on NVIDIA H200, estimated", "total")


def test_what_is_no_measured_plan_is_refused(robust: Robust, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")
    robust("plan", tiny, "--device-rates", tmp_path / "other.json").require(2, "robust plan SPEC --json > other.json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    robust("plan", tiny, "--device-rates", tmp_path / "deep.json").require(2, "not a plan that was measured")
    robust("plan", tiny, "--device-rates", tmp_path / "none.json").require(2, "there is no file")
    robust("plan", tiny, "seed=0,1", "--device-rates", tmp_path / "none.json").require(2, "not a sweep")
