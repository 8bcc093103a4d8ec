"""A failed allocation ends with one message and keeps finished results."""

from pathlib import Path

import pytest
import torch
from shell import Robust

from robustcli.training import loop


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB\nand more"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_training_that_runs_out_of_memory_can_be_resumed(
    robust: Robust, tiny: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_update", fail)
        said = robust("train", tiny, "--quiet").require(2, "error: out of memory (", "train.batch_size=N")
    assert "Traceback" not in said.err
    assert "and more" not in said.err
    robust("train", tiny, "--quiet", "--resume").require(0)


def test_other_errors_are_still_internal(robust: Robust, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(loop, "_update", fail)
    said = robust("train", tiny, "--quiet")
    assert said.code == 70
    assert "RuntimeError: something else" in said.err
