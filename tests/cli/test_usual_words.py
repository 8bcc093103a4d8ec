"""What people type by instinct: aliases, presets, pictures of an evaluation, survivors attacked anew."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shell import Robust

from robustcli.errors import RobustCliError
from robustcli.specs import presets
from robustcli.store.runs import RunFolder

PGD = ("--attack", "pgd", "--steps", 3, "-n", 60, "--eps", "0.6")


def test_other_names_of_commands_and_parts_are_understood(robust: Robust, trained: RunFolder, tiny: Path) -> None:
    robust("ls", trained.path.parent).require(0, "finished")
    plain = robust("validate", tiny, "architecture.width=6").require(0)
    assert robust("validate", tiny, "arch.width=6").require(0).out == plain.out
    assert robust("list", "recipes").require(0).out == robust("list", "experiments").require(0).out


@pytest.mark.parametrize(
    ("words", "instead"),
    [
        ("gc --keep best,last", "a run keeps only best.pt and last.pt"),
        ("board merge a.json", "robust report"),
        ("requeue runs/x", "robust submit"),
        ("submit robustbench runs/x", "robust export robustbench"),
        ("compare a b --paired", "leave --paired out"),
        ("plot pareto", "robust pareto"),
        ("eval runs/x --json out.json", "write --out out.json for a file"),
        ("eval runs/x --n 5", "write -n N or --examples N"),
        ("train mine.yaml --seed 1", "write seed=1"),
        ("train mine.yaml --epochs=3", "write train.epochs=3"),
        ("sweep mine.yaml --train.lr 0.1,0.2", "write train.lr=0.1,0.2"),
    ],
)
def test_what_there_is_not_names_what_there_is(robust: Robust, words: str, instead: str) -> None:
    robust(*words.split()).require(2, instead)


def test_a_preset_sets_what_is_not_given(robust: Robust, trained: RunFolder, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("attack: pgd\nnorm: l2\neps: 1/2\nexamples: 20\ndata: digits\n", encoding="utf-8")
    found = robust("eval", trained.path, "--preset", mine, "-n", 10).require(0, "l2 0.5", "--examples 10 replaces 20")
    assert " of 10 images" in found.err
    mine.write_text("attack: pgd\nepsilon: 1/2\n", encoding="utf-8")
    robust("eval", trained.path, "--preset", mine).require(2, "preset.epsilon: unknown parameter", "eps")
    robust("eval", trained.path, "--preset", "robustbench-cifar10").require(2, "did you mean 'robustbench-cifar10-l")
    assert all(name in robust("list", "presets").require(0).out for name in presets.names())


def test_shipped_presets_are_those_of_the_leaderboard() -> None:
    found = {name: presets.read_preset(name) for name in presets.names()}
    assert found["robustbench-cifar10-linf"] == {
        "data": "cifar10",
        "norm": "linf",
        "eps": "8/255",
        "examples": 10000,
        "attack": "autoattack",
    }
    assert found["robustbench-cifar10-l2"]["eps"] == "0.5"
    assert all(presets.summary(name).endswith(".") for name in found)
    Path("none.yaml").write_text("examples: 0\n", encoding="utf-8")
    with pytest.raises(RobustCliError, match=r"preset\.examples: 0 is outside the range"):
        presets.read_preset("none.yaml")


def test_plot_draws_the_examples_of_an_evaluation(robust: Robust, trained: RunFolder) -> None:
    robust("show-examples", "evals").require(2, "there is no such folder")
    robust("eval", trained.path, *PGD).require(0)
    (plain,) = Path("evals").iterdir()
    robust("show-examples", plain).require(2, "no adversarial examples are stored; evaluate with --save-examples")
    found = robust("eval", trained.path, "--plot", *PGD).require(0, "examples.png")
    (folder,) = (path for path in Path("evals").iterdir() if path != plain)
    image = np.asarray(Image.open(folder / "examples.png"))
    assert image.ndim == 3
    assert str(folder / "examples.png") in found.out
    # The folder of all evaluations stands for the only one in it that has examples.
    assert robust("show-examples", "evals").require(0).out == robust("show-examples", folder).require(0).out
    shutil.copytree(folder, folder.with_name("copy"))
    robust("show-examples", "evals").require(2, "2 folders in it have adversarial examples", "copy")


def test_survivors_are_attacked_anew(robust: Robust, trained: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    weak = ("--attack", "fgsm", "--step-size", "0.0001", "--eps", "0.6", "-n", 60)
    robust("eval", trained.path, *weak).require(0)
    (folder,) = Path("evals").iterdir()
    said = robust("verify", folder, "--resample", 40, "--attack", "pgd")
    said.require(1, "robust accuracy is at most", "(images ", "of 60 images), not the stored")
    lines = iter(said.err.splitlines())
    for beginning in (
        f"verifying {folder}",
        "verifying fgsm, 60 images",
        "attacking survivors with pgd",
        "evaluating pgd: ",
    ):
        assert any(line.startswith(beginning) for line in lines), said.err
    robust("verify", folder, "--resample", 5, "--attack", "none").require(2, "attacks nothing")
    # The first line does not wait for torch.
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "robustcli.workflows.verify", None)
        assert robust("verify", folder).err.startswith(f"verifying {folder}\n")
    robust("verify", folder, "--attack", "pgd").require(2, "only with --resample N")
    robust("verify", folder, "--resample", 3, "--attack", "clean", "--key", "fgsm").require(0, "no verdict changes")


def test_paths_that_are_nearly_right_are_named(robust: Robust, trained: RunFolder, tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "mine"
    shutil.copytree(trained.path, run)
    robust("eval", "mine").require(2, "did you mean 'runs/mine'?")
    robust("eval", "runs/mine/best").require(2, "did you mean 'runs/mine/checkpoints/best.pt'?")
    (tmp_path / "net.py").write_text("def build(): ...\n")
    robust("eval", "net.py").require(2, "--model net.py:FUNCTION")
    robust("train", run).require(2, "is a folder", "spec.yaml")
    robust("train", tiny.with_suffix(".yml")).require(2, f"did you mean '{tiny}'?")
    robust("train", trained.best).require(2, "expected a YAML file")
    robust("verify", run, tmp_path).require(2, "a second file or folder")
    robust("verify", tmp_path / "gone.zip").require(2, "no such file or folder")


def test_archives_and_models_in_place_of_results_are_recognized(
    robust: Robust, trained: RunFolder, tmp_path: Path
) -> None:
    shutil.make_archive(str(tmp_path / "claim"), "zip", trained.path)
    for words in (("compare", "claim.zip", trained.path), ("results", "claim.zip"), ("report", "claim.zip")):
        robust(*words).require(2, "a zip archive; unpack it")
    robust("diff", trained.path, "robustbench:Some").require(2, "evaluate it first: robust eval robustbench:Some")


@pytest.mark.parametrize(
    ("words", "instead"),
    [
        ("--attack PGD", "did you mean 'pgd'?"),
        ("--attack aa", "did you mean 'autoattack'?"),
        ("--attack cw", "did you mean 'carlini_wagner'?"),
        ("--attack pgd-20", "write --attack pgd --steps 20"),
        ("--attack pgd-50-10", "write --attack pgd --steps 50"),
        ("--attack transfer --source x.pt", "--attack pgd --source MODEL"),
    ],
)
def test_usual_names_of_attacks_lead_to_ours(robust: Robust, trained: RunFolder, words: str, instead: str) -> None:
    robust("eval", trained.path, *words.split()).require(2, instead)


def test_the_norm_may_be_written_in_capitals(robust: Robust, trained: RunFolder) -> None:
    robust("eval", trained.path, "--attack", "clean", "--norm", "Linf", "-n", 5).require(0)


def test_an_exit_code_is_explained_in_words(robust: Robust) -> None:
    assert robust("explain", "exit", "code", "4").require(0).out == robust("explain", 4).require(0).out


def test_the_only_run_of_a_folder_is_found_and_several_are_listed(
    robust: Robust, trained: RunFolder, tmp_path: Path
) -> None:
    one = tmp_path / "runs" / "mine" / "0-s0"
    shutil.copytree(trained.path, one)
    for words in (("results", one.parent), ("gate", one.parent, "--min", "pgd>=0"), ("compare", one.parent, one)):
        robust(*words).require(0)
    shutil.copytree(one, one.with_name("0-s1"))
    for command in ("results", "verify"):
        robust(command, one.parent).require(2, "holds 2 finished runs or evaluations; name one of them", "0-s0")
    robust("runs", tmp_path / "nowhere").require(2, "no such folder")


def test_weights_that_are_not_here_are_said_to_belong_to_the_results(
    robust: Robust, trained: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained.path, tmp_path / "run")
    robust("eval", "run", "--attack", "clean", "-n", 5).require(0)
    (folder,) = (tmp_path / "evals").iterdir()
    monkeypatch.chdir(folder)
    robust("verify", folder).require(2, "run: no such file here, but", "is about it")
    robust("verify", folder, "--checkpoint", tmp_path / "run").require(0)
