"""On a processor without bf16 instructions, training warns of slow emulation, and a fast search is one in fp32."""

import platform
from pathlib import Path

import pytest
from shell import TINY, Robust

from robustcli.evaluation import searches
from robustcli.runtime import precision
from robustcli.store.files import read_json
from robustcli.store.runs import RunFolder

# Hides all instructions beyond AVX2 from the libraries of torch.
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
LACKS = "has no instructions for bf16 and emulates it"
FAST = ("--attack", "autoattack", "--attacks", "apgd-ce", "--examples", 100, "--precision", "fast", "--quiet")
COUNTED = ("survivors", "forwards", "gradients")


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the libraries are told of instructions of x86")
def test_training_in_bf16_on_avx2_warns_of_its_cost(robust_process: Robust, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    words = ("train", "tiny.yaml", "train.precision=bf16", "train.channels_last=auto", "--quiet")
    said = robust_process(*words, cwd=tmp_path, env=AVX2).require(0)
    (line,) = (line for line in said.err.splitlines() if LACKS in line)
    assert line.startswith("warning: train.precision: bf16: this processor (as torch uses it: AVX2)")
    assert line.endswith("write train.precision: fp32")
    (path,) = tmp_path.glob("runs/tiny/*/provenance.json")
    (session,) = read_json(path)["sessions"]
    assert line == f"warning: {session['emulated']}"


@pytest.mark.filterwarnings("error")
def test_a_fast_search_without_bf16_is_one_in_fp32(
    robust: Robust, trained: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searches, "is_native", lambda name, _device: name == "fp32")
    said = robust("eval", trained.best, *FAST, "--out", "fast.json").require(0)
    plain = [word if word != "fast" else "fp32" for word in FAST]
    robust("eval", trained.best, *plain, "--out", "plain.json").require(0)
    fast, exact = (read_json(Path(f"{name}.json"))["evaluations"]["autoattack"] for name in ("fast", "plain"))
    (told,) = fast["warnings"]
    assert told.startswith("precision fast: apgd-ce searched in fp32, because on this device passes in bf16 do not")
    assert f"note: autoattack: {told}" in said.out
    assert exact["warnings"] == []
    assert [fast[name] for name in COUNTED] == [exact[name] for name in COUNTED]


@pytest.mark.parametrize(("is_there", "expected"), [(True, "fast"), (False, "fp32")])
def test_the_precision_of_a_search_may_be_left_to_the_machine(
    is_there: bool, expected: str, robust: Robust, trained: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "is_native", lambda name, _device: is_there or name == "fp32")
    words = [word if word != "fast" else "auto" for word in FAST if word != "--quiet"]
    said = robust("eval", trained.best, *words, "--out", "found.json", "--store", expected).require(0)
    assert f"precision: {expected} (auto, cpu" in said.err
    found = read_json(Path("found.json"))["evaluations"]["autoattack"]
    assert found["parameters"]["precision"] == expected
    refused = robust("eval", trained.best, *words, "--engine", "slurm")
    assert refused.code == 2
    assert "--precision auto: --engine slurm runs on other machines" in refused.err
