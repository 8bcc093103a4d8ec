"""cuDNN may choose the fastest algorithm in training, and only there."""

import pytest
import torch

from robustcli.runtime.device import tuned_convolutions


@pytest.mark.parametrize(("device", "is_tuned"), [("cuda", True), ("cpu", False)])
def test_convolutions_are_tuned_on_a_gpu_inside_only(device: str, is_tuned: bool) -> None:
    assert not torch.backends.cudnn.benchmark
    with tuned_convolutions(torch.device(device)):
        assert torch.backends.cudnn.benchmark == is_tuned
    assert not torch.backends.cudnn.benchmark


def test_deterministic_algorithms_switch_tuning_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    with tuned_convolutions(torch.device("cuda")):
        assert not torch.backends.cudnn.benchmark
