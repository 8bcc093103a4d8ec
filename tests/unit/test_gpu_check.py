"""`robust bench gpu` runs every step, and a step that fails is an outcome."""

import json
from typing import Any

import pytest
import torch

from robustcli.bench import gpu_check
from robustcli.bench.conformance import Comparison
from robustcli.bench.gpu_check import Outcome, Sizes, check_gpu
from robustcli.bench.results.bases import Bench
from robustcli.bench.results.conformance import ConformanceBench
from robustcli.cli.progress import Screen
from robustcli.measuring.machine import circumstances


@pytest.mark.slow
def test_every_step_has_an_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, with slow measurements replaced; models and epochs are trained."""
    requests = []

    measured = Bench(**vars(circumstances(torch.device("cpu"))))
    survives = torch.ones(1, 4, dtype=torch.bool)
    only_ours = Comparison("standard", survives & (torch.arange(4) != 3), survives).row()
    compared = ConformanceBench(**vars(measured), subject="a", threat="b", images=4, precision="fp32", rows=[only_ours])

    def bench(request: Any) -> Bench:
        requests.append((request.precision, request.is_compiled))
        if request.is_compiled:
            raise RuntimeError("no compiler")
        return measured

    monkeypatch.setattr(gpu_check, "bench_train", bench)
    monkeypatch.setattr(gpu_check, "bench_autoattack", lambda *_: measured)
    monkeypatch.setattr(gpu_check, "bench_conformance", lambda *_: compared)
    monkeypatch.setattr(gpu_check, "_run_tests", lambda: Outcome(status="skipped", reason="the tests"))
    monkeypatch.setattr(gpu_check, "_epoch", lambda *_: Outcome(images_per_second=7))
    begun: list[str] = []
    with Screen(is_quiet=True) as screen:
        found = check_gpu("cpu", Sizes(images=8, epochs=1), screen, begun.append)
    assert requests == [("fp32", False), ("bf16", False), ("bf16", True)]
    assert [step.step for step in found.steps] == begun
    outcomes = [step.status for step in found.steps]
    assert outcomes == ["skipped", "ok", "ok", "failed", "ok", "ok", "ok", "ok", "ok"]
    assert str(found.steps[3]) == "failed: RuntimeError: no compiler"
    assert found.failed == [found.steps[3].step]
    assert str(found.steps[5]) == "1 verdicts differ"
    assert str(found.steps[-1]) == "7 images/s"
    stored = json.loads(json.dumps(found.to_json()))
    assert stored["steps"][5]["result"]["rows"][0]["broken_by_native_alone"] == [3]


@pytest.mark.slow
def test_an_epoch_of_random_images_is_timed(tmp_path: Any) -> None:
    with Screen(is_quiet=True) as screen:
        found = gpu_check._epoch(
            gpu_check.choose_device("cpu"), Sizes(images=4, epoch=16, batch=8, width=4), screen, tmp_path, False
        )
    assert (found.images_per_second or 0) > 0
