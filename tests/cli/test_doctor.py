"""`robust doctor` reports the machine, and fails if an attack does not find a known answer."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from shell import Robust

from robustcli.attacks.pgd import Pgd


def test_a_sound_installation_passes(robust: Robust, tmp_path: Path) -> None:
    findings = json.loads(robust("doctor", "--runs", tmp_path / "runs", "--json").require(0).out)
    assert [finding["subject"] for finding in findings if not finding["is_ok"]] == []
    assert {"robust", "packages", "device", "disk", "self-test"} <= {finding["subject"] for finding in findings}


def test_a_wrong_attack_is_found(robust: Robust, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stay(self: Pgd, model: Any, x: Any, *_: Any) -> Any:
        return x

    monkeypatch.setattr(Pgd, "__call__", stay)
    robust("doctor", "--runs", tmp_path).require(1, "FAIL  self-test")


@pytest.mark.skipif(os.geteuid() != 0, reason="looks at a folder that only root may not write to")
def test_a_folder_that_cannot_be_written_is_found(robust: Robust) -> None:
    robust("doctor", "--runs", "/proc/1").require(1, "which is not writable")
