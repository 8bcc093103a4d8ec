"""`robust plan` estimates the cost of a spec or of every row of a sweep, as text or JSON."""

import json
import sys
from pathlib import Path

import pytest
import torch
from shell import TINY, Robust

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.architectures.robust_scaling import robust_scaling
from robustcli.measuring.network_profile import network_profile
from robustcli.specs.spec import ExperimentSpec
from robustcli.workflows.plan.plan import Request, plan

SWEEP = """\
# Two ways to train on 64 digits.
name: family
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
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")
    return path


@pytest.mark.slow
def test_a_plan_is_printed_in_tables_and_nothing_is_stored(robust: Robust, tiny: Path, tmp_path: Path) -> None:
    done = robust("plan", str(tiny), "train.epochs=3", "--updates", "3", "--robust", "0.4")
    assert done.code == 0, done.err
    for words in ("3 epochs, 12 updates of 32", "total", "train.precision=bf16", "peak memory", "40 %"):
        assert words in done.out, words
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


def test_json_holds_the_same(robust: Robust, tiny: Path) -> None:
    done = robust("plan", str(tiny), "--updates", "3", "--json")
    found = json.loads(done.out)
    assert set(found["seconds"]) == {"low", "high"}
    assert 0 < found["seconds"]["low"] <= found["seconds"]["high"]
    assert found["fits"] is True


@pytest.mark.slow
def test_a_budget_is_what_the_plan_finds(robust: Robust, tiny: Path) -> None:
    """The smallest budget that RobustScaling takes: (1, 1, 1) blocks for 8x8 images with one channel."""
    robust("plan", str(tiny), "architecture={name: robust_resnet, budget: 0.02}").require(2, "write 0.0214 or more")
    small = ["train.batch_size=2", "train.check_examples=2", "evaluate={}"]
    spec = ExperimentSpec.read(tiny, ["architecture={name: robust_resnet, budget: 0.03}", *small])
    found = plan(Request(spec=spec, updates=3, robust=None, savings=False))
    chosen = robust_scaling(0.03)
    with torch.device("meta"):
        shape = ImageShape(1, 8, 8, 10)
        network = ARCHITECTURES.get("robust_resnet")(shape, depths=chosen[0], widths=chosen[1])
        assert found.macs == network_profile(network, shape).macs


@pytest.mark.slow
def test_of_a_sweep_every_row_is_one_line(robust: Robust, tmp_path: Path) -> None:
    path = tmp_path / "family.yaml"
    path.write_text(SWEEP, encoding="utf-8")
    done = robust("plan", str(path), "--updates", "3", "--json")
    assert done.code == 0, done.err
    rows = json.loads(done.out)
    assert [(name, row["seeds"]) for name, row in rows.items()] == [("natural", 2), ("pgd_at", 2)]
    assert rows["natural"]["passes_per_image"]["forwards"] == 1
    refused = robust("plan", str(path), "--compile")
    assert (refused.code, "--compile" in refused.err) == (2, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--robust", "much"], "--robust: 'much' is not a fraction"), (["train.epocs=3"], "did you mean 'epochs'")],
)
def test_a_mistake_is_named(robust: Robust, tiny: Path, words: list[str], said: str) -> None:
    done = robust("plan", str(tiny), *words)
    assert done.code == 2
    assert said in done.err


def test_what_is_measured_is_printed_from_the_start(
    robust: Robust, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = robust("plan", tiny, "--updates", 3, "--json").require(0).err.splitlines()
    assert lines[0] == "measuring tiny: updates, passes of the network, and attacks"
    assert [line for line in lines if line.startswith("measuring ")][1:] == [
        "measuring 6 updates of 32 images",
        "measuring the check after every epoch",
        "measuring evaluation clean",
        "measuring evaluation pgd",
        "measuring bf16",
    ]
    # The first line does not wait for torch.
    monkeypatch.setitem(sys.modules, "robustcli.workflows.plan.plan", None)
    assert robust("plan", tiny).err.splitlines()[0] == lines[0]
    monkeypatch.setitem(sys.modules, "robustcli.workflows.plan.rows", None)
    assert robust("plan", tiny, "seed=0,1").err.splitlines()[0] == "measuring 1 row of tiny"


def test_a_long_measurement_is_announced(robust: Robust, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "measuring takes about" not in robust("plan", tiny, "--updates", 3).require(0).err
    monkeypatch.setattr("robustcli.cli.plan._LONG", 0)
    assert "measuring takes about" in robust("plan", tiny, "--updates", 3).require(0).err
