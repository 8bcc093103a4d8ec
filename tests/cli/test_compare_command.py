"""`robust compare` on a run and on evaluations of its checkpoint."""

import json
from pathlib import Path

from shell import Robust

from robustcli.store.runs import RunFolder


def test_a_run_is_compared_with_itself(robust: Robust, trained: RunFolder) -> None:
    said = robust("compare", trained.path, trained.results, "--wide").require(0, "linf 0.1", "claimable from")
    assert "clean: no difference can be claimed: A - B is +0.00 points" in said.out
    assert "pgd: no difference can be claimed" in said.out


def test_weights_are_compared_with_what_eval_wrote(robust: Robust, trained: RunFolder, tmp_path: Path) -> None:
    out = tmp_path / "worse.json"
    words = ("--attack", "pgd", "--steps", 4, "--examples", 40, "--eps", "0.1", "--out", out, "--quiet")
    robust("eval", trained.best, *words).require(0)
    value = json.loads(robust("compare", trained.path, out, "--json").require(0).out)
    assert (value["a"], value["b"]) == (str(trained.path), str(out))
    pair = value["comparisons"]["pgd"]
    assert (pair["total"], pair["both"] + pair["only_a"]) == (40, pair["a"]["correct"])
    assert pair["a"]["accuracy"] == pair["a"]["correct"] / 40
    assert pair["warnings"][0] == "A has 60 images and B 40; the first 40 are compared"
    assert "attack.steps 3 in A, 4 in B" in pair["warnings"][1]
    robust("compare", trained.path, out).require(0, "note: pgd: evaluated differently (attack.steps 3 in A, 4 in B)")


def test_what_cannot_be_compared_ends_with_2(robust: Robust, trained: RunFolder, tmp_path: Path) -> None:
    out = tmp_path / "other.json"
    robust("eval", trained.best, "--attack", "pgd", "--eps", "0.2", "--examples", 9, "--out", out, "-q").require(0)
    robust("compare", trained.path, out).require(2, "pgd: linf 0.1 in A, linf 0.2 in B")
    robust("compare", trained.path, trained.path, "--key", "cleen").require(2, "did you mean 'clean'?")
    robust("compare", trained.path, trained.best).require(2, "best.pt: not text")
    (tmp_path / "empty").mkdir()
    robust("compare", trained.path, tmp_path / "empty").require(2, "found no results.json in this folder")
