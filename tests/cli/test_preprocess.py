"""Transformations of images before the network, in specs and on the command line."""

import json
from pathlib import Path

from shell import TINY, Robust

from robustcli.store.runs import RunFolder

PGD = ("--attack", "pgd", "--steps", 2, "--examples", 20)


def test_a_spec_trains_and_evaluates_behind_a_transformation(robust: Robust, tmp_path: Path) -> None:
    path = tmp_path / "behind.yaml"
    path.write_text(TINY.replace("width: 4,", "width: 4, preprocess: {name: bit_depth, bits: 2},"), encoding="utf-8")
    robust("train", path, "--quiet").require(0)
    (run,) = Path("runs/tiny").iterdir()
    assert "bits: 2" in (run / "spec.yaml").read_text(encoding="utf-8")
    robust("eval", run, *PGD).require(0, "pgd")
    robust("verify", run).require(0)
    robust("eval", run, "--preprocess", "jpeg", *PGD).require(2, "was trained behind 'bit_depth'")


def test_a_checkpoint_is_evaluated_behind_a_transformation(robust: Robust, trained: RunFolder) -> None:
    plain = robust("eval", trained.path, *PGD).require(0)
    found = robust("eval", trained.path, "--preprocess", "jpeg", "preprocess.quality=5", *PGD).require(
        0, "images pass through jpeg quality=5 subsampling=4:2:0 before the network"
    )
    assert plain.out.splitlines()[-1] != found.out.splitlines()[-1], "stored in the same folder"
    robust("verify", found.out.splitlines()[-1].removeprefix("stored in ")).require(0)
    random = ("eval", trained.path, "preprocess=resize_pad", "-n", 10, "--json", "-q", "--attack")
    for attack, is_said in (("pgd", True), ("eot_pgd", False)):
        suspicions = json.loads(robust(*random, attack).require(0).out)["evaluations"][attack]["suspicions"]
        assert any("majority vote of several passes" in text for text in suspicions) is is_said


def test_an_external_network_is_evaluated_behind_a_transformation(robust: Robust) -> None:
    Path("mine.py").write_text(
        "from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    words = ("eval", "--model", "mine.py:build", "--data", "digits", "--norm", "linf", "--eps", "0.1", *PGD)
    robust(*words, "--mean", 0, "--std", 1, "--preprocess", "bit_depth").require(
        0, "images pass through bit_depth bits=3"
    )
    robust(*words, "--preprocess", "jpg").require(2, "did you mean 'jpeg'?")


def test_what_is_wrong_with_a_transformation_is_said(robust: Robust, tiny: Path) -> None:
    robust("validate", tiny, "architecture.preprocess.name=bit_depth", "architecture.preprocess.bits=9").require(
        2, "architecture.preprocess.bits"
    )
    robust("validate", tiny, "preprocess=jpeg").require(2, "write it under architecture, as architecture.preprocess")
    robust("validate", tiny, "architecture.preprocess=resize_pad", "evaluate.aa=autoattack").require(0, "write rand")
    robust("validate", tiny, "architecture.preprocess=jpeg", "evaluate.aa=autoattack").require(0)
