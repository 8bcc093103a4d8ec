"""`robust bench gpu` runs every step, and a step that fails is an outcome."""

import json
from typing import Any

import pytest

from robustcli.bench import gpu_check
from robustcli.bench.gpu_check import Sizes, check_gpu
from robustcli.cli.progress import Screen


def test_every_step_has_an_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, with slow measurements replaced; models and epochs are trained."""
    requests = []

    def bench(request: Any) -> dict[str, Any]:
        requests.append((request.precision, request.is_compiled))
        if request.is_compiled:
            raise RuntimeError("no compiler")
        return {}

    only_ours = {"part": "standard", "broken_by_native_alone": [3], "broken_by_package_alone": []}
    monkeypatch.setattr(gpu_check, "bench_train", bench)
    monkeypatch.setattr(gpu_check, "bench_autoattack", lambda *_: {})
    monkeypatch.setattr(gpu_check, "bench_conformance", lambda *_: {"rows": [only_ours]})
    monkeypatch.setattr(gpu_check, "_run_tests", lambda: {"status": "skipped", "reason": "these are the tests"})
    monkeypatch.setattr(gpu_check, "_epoch", lambda *_: {"images_per_second": 7})
    begun: list[str] = []
    with Screen(is_quiet=True) as screen:
        found = check_gpu("cpu", Sizes(images=8, epochs=1), screen, begun.append)
    assert requests == [("fp32", False), ("bf16", False), ("bf16", True)]
    assert [step["step"] for step in found["steps"]] == begun
    outcomes = [step["status"] for step in found["steps"]]
    assert outcomes == ["skipped", "ok", "ok", "failed", "ok", "ok", "ok", "ok", "ok"]
    assert found["steps"][3]["reason"] == "RuntimeError: no compiler"
    assert found["steps"][5]["differing"] == 1
    json.dumps(found)


def test_an_epoch_of_random_images_is_timed(tmp_path: Any) -> None:
    with Screen(is_quiet=True) as screen:
        found = gpu_check._epoch(
            gpu_check.choose_device("cpu"), Sizes(images=4, epoch=16, batch=8, width=4), screen, tmp_path, False
        )
    assert found["images_per_second"] > 0
