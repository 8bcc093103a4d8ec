"""The benches of single parts at the command line: what they print, store and refuse."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from shell import TINY, Robust

from robustcli.cli.bench_options import kept
from robustcli.errors import RobustCliError
from robustcli.measuring.machine import Circumstances, circumstances


@pytest.fixture
def checkpoint(robust: Robust, tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    done = robust("train", str(tmp_path / "tiny.yaml"), "--runs", str(tmp_path / "runs"), "--quiet")
    assert done.code == 0, done.err
    (found,) = (tmp_path / "runs").rglob("best.pt")
    return found


@pytest.mark.slow
def test_evaluations_are_printed_stored_and_put_into_a_page(
    robust: Robust, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    monkeypatch.setitem(sys.modules, "foolbox", None)
    out = tmp_path / "found.json"
    done = robust("bench", "eval", str(checkpoint), "--examples", "20", "--rounds", "3", "--out", str(out))
    assert done.code == 0, done.err
    assert "note: foolbox cannot be imported and is omitted" in done.out
    assert [result["attack"] for result in json.loads(out.read_text())] == ["pgd-20"]
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- evaluation speed -->\nold\n<!-- /evaluation speed -->\nafter\n")
    assert robust("bench", "report", str(out), "--into", str(page)).code == 0
    text = page.read_text()
    assert "old" not in text
    assert "| tiny | linf 0.1 | 20 | pgd-20: ours, images leave |" in text
    assert re.search(r"\d threads?, load", text)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("eval", "data.root=nowhere"), "name a checkpoint"),
        (("architectures", "--out", "."), "--out: .: is a folder; expected a file"),
        (("architectures", "--architecture", "resnet_18"), "there is no 'resnet_18'"),
        (("scaling", "--architecture", "vit18"), "unknown name 'vit18'"),
    ],
)
def test_what_cannot_be_measured_is_refused(robust: Robust, words: tuple[str, ...], said: str) -> None:
    done = robust("bench", *words)
    assert done.code == 2
    assert said in done.err


def test_measurements_are_kept_if_a_later_one_fails(tmp_path: Path) -> None:
    out = tmp_path / "found.json"

    def measured() -> Iterator[Any]:
        yield Circumstances(**vars(circumstances(torch.device("cpu"))))
        raise RobustCliError("the second checkpoint is missing")

    with pytest.raises(RobustCliError, match="second"):
        kept(measured(), out)
    assert len(json.loads(out.read_text())) == 1
