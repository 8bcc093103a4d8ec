"""Commands that take the folder of a run instead of a checkpoint."""

import json
import shutil
from pathlib import Path

from shell import Robust

from robustcli.store.runs import RunFolder


def test_eval_takes_the_folder_of_a_run(robust: Robust, trained: RunFolder) -> None:
    words = ("--attack", "clean", "--examples", "20", "--json", "-q")
    of_folder = json.loads(robust("eval", trained.path, *words).require(0).out)
    of_file = json.loads(robust("eval", trained.best, *words).require(0).out)
    assert of_folder["checkpoint"] == "best.pt"
    assert of_folder["network"] == of_file["network"]
    assert of_folder["evaluations"] == of_file["evaluations"]


def test_eval_of_a_folder_of_several_runs_lists_them(robust: Robust, trained: RunFolder, tmp_path: Path) -> None:
    for name in ("a-s0", "a-s1"):
        shutil.copytree(trained.path, tmp_path / "runs" / "tiny" / name)
    robust("eval", "runs", "--attack", "clean").require(2, "holds 2 runs", "runs/tiny/a-s0", "runs/tiny/a-s1")


def test_eval_of_a_folder_without_a_run_names_what_is_expected(robust: Robust, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    robust("eval", "empty", "--attack", "clean").require(2, "a folder without a run", "checkpoints/best.pt")
    (tmp_path / "empty" / "results.json").write_text("{}")
    robust("eval", "empty", "--attack", "clean").require(2, "a stored evaluation", "robust results empty")
