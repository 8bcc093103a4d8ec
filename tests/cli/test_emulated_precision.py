"""On a processor without bf16 instructions, slow emulation is warned of once and recorded."""

import platform
from fractions import Fraction
from pathlib import Path

import pytest
from shell import TINY, Robust

from robustcli.attacks.pgd import Pgd
from robustcli.evaluators.attack import Attacked
from robustcli.evaluators.autoattack import AutoAttack
from robustcli.evaluators.clean import Clean
from robustcli.evaluators.other_threat import Under
from robustcli.evaluators.worst_case import WorstCase
from robustcli.runtime import precision
from robustcli.store.files import read_json
from robustcli.store.runs import RunFolder

# Hides all instructions beyond AVX2 from the libraries of torch.
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
LACKS = "has no instructions for bf16 and emulates it"
FAST = ("--attack", "autoattack", "--attacks", "apgd-ce", "--examples", 20, "--precision", "fast", "--quiet")


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


@pytest.mark.filterwarnings("default:.*has no instructions for:UserWarning")
def test_a_fast_search_without_bf16_warns_once_and_in_its_result(
    robust: Robust, trained: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "is_native", lambda name, _device: name == "fp32")
    with pytest.warns(UserWarning, match=f"^precision: fast: this processor .* {LACKS}") as warned:
        said = robust("eval", trained.best, *FAST, "--out", "found.json").require(0)
    assert len(warned) == 1
    (told,) = read_json(Path("found.json"))["evaluations"]["autoattack"]["warnings"]
    assert told == str(warned[0].message)
    assert told.endswith("; write precision: fp32")
    assert f"note: autoattack: {told}" in said.out


@pytest.mark.filterwarnings("error")
def test_no_warning_without_a_fast_search_or_with_a_stored_result(
    robust: Robust, trained: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = [word if word != "fast" else "fp32" for word in FAST]
    monkeypatch.setattr(precision, "is_native", lambda name, _device: True)
    robust("eval", trained.best, *FAST).require(0)
    monkeypatch.setattr(precision, "is_native", lambda name, _device: name == "fp32")
    robust("eval", trained.best, *FAST).require(0)
    said = robust("eval", trained.best, *plain).require(0)
    assert LACKS not in said.out + said.err


def test_a_worst_case_with_a_fast_search_counts_as_fast() -> None:
    hasty = AutoAttack(precision="fast")
    ones = (hasty, AutoAttack(), Clean(), Attacked(attack=Pgd()))
    assert [one.is_low_precision for one in ones] == [True] + [False] * 3
    for inside, expected in ((hasty, True), (Clean(), False)):
        assert WorstCase(members=[Clean(), inside]).is_low_precision is expected
        assert Under(norm="l2", eps=Fraction(1, 2), evaluator=inside).is_low_precision is expected


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
