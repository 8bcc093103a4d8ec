"""Every command on a tiny spec: what it prints, what it stores, and how it ends."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killing import Sessions
from shell import TINY, Robust, environment

from robustcli import __version__
from robustcli.measuring import timing
from robustcli.registry.catalog import FAMILIES, catalog
from robustcli.registry.published import published
from robustcli.specs import experiments
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.checkpoint import Checkpoint, ResumableCheckpoint
from robustcli.store.files import read_json, write_json
from robustcli.store.runs import RunFolder
from robustcli.training import collapse

FIRST_OF_FAMILIES = {next(iter(catalog(family))) for family in FAMILIES}
NAMES = [
    pytest.param(name, marks=[] if name in FIRST_OF_FAMILIES else [pytest.mark.slow])
    for name in sorted({name for family in FAMILIES for name in catalog(family)})
]
RESULT_KEYS = {
    "schema", "status", "name", "seed", "spec_digest", "threat", "data", "selection", "epoch", "collapsed_at",
    "precision", "evaluations", "claim", "chain",
}  # fmt: skip
EVALUATION_KEYS = {
    "evaluator", "parameters", "norm", "eps", "eps_value", "seed", "survivors", "forwards", "gradients", "seconds",
    "warnings", "correct", "total", "accuracy", "interval", "stages", "suspicions", "verdict", "is_upper_bound",
    "fingerprint", "sample", "estimate", "certified",
}  # fmt: skip


def the_run(root: Path) -> RunFolder:
    (path,) = root.glob("*/*")
    return RunFolder(path)


def test_the_commands_are_those_that_are_documented(robust: Robust) -> None:
    said = robust("--help").require(0)
    for command in (
        "train",
        "reproduce",
        "demo",
        "eval",
        "compare",
        "list",
        "show",
        "validate",
        "cp",
        "runs",
        "report",
        "bench",
        "export",
    ):
        assert command in said.out
        robust(command, "--help").require(0)
    assert robust("--version").require(0).out == f"robust {__version__}\n"


@pytest.mark.parametrize(
    "words", [("trian",), ("train",), ("train", "a", "--no-such-option"), ("eval",), ("cp", "one"), ("show",)]
)
def test_words_that_are_no_command_end_with_2(robust: Robust, words: tuple[str, ...]) -> None:
    robust(*words).require(2)


# bench


BENCH = ("bench", "train", "--architecture", "small_cnn", "--width", 4, "--batch-size", 4, "--rounds", 3)


@pytest.mark.slow
def test_bench_train_prints_what_was_measured_and_where(robust: Robust, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    monkeypatch.setattr(timing, "_SAMPLE", 0.0)
    robust("bench", "--help").require(0, "train")
    robust("bench", "train", "--help").require(0, "--defense", "--channels-last", "--precision")
    said = robust(*BENCH, "--defense", "pgd_at", "--defense", "natural")
    said.require(0, "pgd_at, small_cnn width 4, batch 4, fp32, plain format", "natural, small_cnn", "time / limit")
    said.require(0, "11 forwards, 10 input gradients, 1 weight gradients (the minimum)", f"torch {torch.__version__}")
    # The message is one line, and its brackets are not taken for markup.
    said.require(0, "note: torchattacks cannot be imported and is omitted (pip install torchattacks)\n")
    said = robust(*BENCH, "--width", 6, "--batch-size", 2, "--defense", "natural", "--out", "speed.json")
    said.require(0, *(f"small_cnn width {width}, batch {size}" for width in (4, 6) for size in (4, 2)))
    stored = json.loads(Path("speed.json").read_text())
    found = [(head["settings"]["architecture"]["width"], head["settings"]["batch_size"]) for head in stored]
    assert found == [(4, 4), (4, 2), (6, 4), (6, 2)]
    results = json.loads(robust(*BENCH, "--defense", "all", "--json").require(0).out)
    # Two need threats, and three need networks with special parts.
    assert set(results["defenses"]) == set(catalog("defenses")) - {"multi_norm", "multibn", "cifs", "dsara"}


def test_bench_train_refuses_what_it_cannot_measure(robust: Robust) -> None:
    robust("bench", "train", "--rounds", 2).require(2)
    robust("bench", "train", "--precision", "fp16").require(2)
    robust("bench", "train", "--defense", "pgd_ta").require(2, "did you mean 'pgd_at'")


# train


def test_train_stores_everything_a_run_has(robust: Robust, tiny: Path) -> None:
    said = robust("train", "tiny.yaml").require(0, "epoch", "evaluating pgd", "stored in runs/tiny/")
    assert "evaluating" not in said.out  # progress is no result
    spec = ExperimentSpec.read(tiny)
    folder = the_run(Path("runs"))
    assert folder.path == Path("runs") / "tiny" / f"{spec.digest}-s0"
    files = {path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*") if path.is_file()}
    assert files - {"lock"} == {
        "spec.yaml", "provenance.json", "train.jsonl", "results.json",
        "checkpoints/best.pt", "checkpoints/last.pt", "evaluations/clean.json", "evaluations/pgd.json",
        "evaluations/clean.csv", "evaluations/pgd.csv",
    }  # fmt: skip
    results = read_json(folder.results)
    assert set(results) == RESULT_KEYS
    assert (results["schema"], results["status"], results["name"], results["seed"]) == (2, "finished", "tiny", 0)
    assert results["spec_digest"] == spec.digest
    assert results["threat"] == {"norm": "linf", "eps": "0.1"}
    assert results["selection"] == {"by": "robust", "images": "val"}
    assert results["precision"] == "fp32"
    assert results["data"]["sizes"] == {"train": 128, "val": 50, "test": 360}
    assert list(results["evaluations"]) == ["clean", "pgd"]
    for key, result in results["evaluations"].items():
        assert set(result) == EVALUATION_KEYS
        assert result == read_json(folder.evaluation(key).result)
        assert result["total"] == len(result["survivors"]) == 60
        assert result["correct"] == result["survivors"].count("1")
        assert result["accuracy"] == result["correct"] / 60
        assert result["interval"][0] <= result["accuracy"] <= result["interval"][1]
        assert f"{100 * result['accuracy']:.1f} [" in said.out
    (record,) = folder.records()
    assert {"epoch", "lr", "seconds", "loss"} <= set(record.to_json())
    (session,) = read_json(folder.provenance)["sessions"]
    assert session["command"] == ["robust", "train", "tiny.yaml"]
    assert session["versions"]["torch"] == version("torch")


def test_a_finished_run_is_shown_again_and_not_touched(robust: Robust, trained: RunFolder, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    folder = RunFolder(shutil.copytree(trained.path, root / trained.path.parent.name / trained.path.name))
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.path.rglob("*.*") if path.is_file()}
    (tmp_path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    time.sleep(0.02)
    for words in ((), ("--resume",), ("train.device=auto",)):
        said = robust("train", tmp_path / "tiny.yaml", "--runs", root, *words).require(0, "finished", "SUSPECT")
        assert "epoch" not in said.err
        assert "this run was finished earlier" in said.err
    quiet = robust("train", tmp_path / "tiny.yaml", "--runs", root, "--quiet")
    assert (quiet.require(0).out, quiet.err) == (said.out, "")
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.path.rglob("*.*") if path.is_file()}
    assert after == before


def test_overrides_make_another_run(robust: Robust, tiny: Path) -> None:
    robust("train", "tiny.yaml", "train.epochs=0", "evaluate={clean: {name: clean, examples: 5}}", "-q").require(0)
    robust("train", "tiny.yaml", "train.epochs=0", "evaluate={}", "seed=3", "-q").require(0)
    folders = sorted(Path("runs", "tiny").iterdir())
    assert len(folders) == 2
    assert {folder.name.rpartition("-")[2] for folder in folders} == {"s0", "s3"}


def test_quiet_prints_only_results(robust: Robust, tiny: Path) -> None:
    said = robust("train", "tiny.yaml", "--quiet", "train.epochs=0", "evaluate={}")
    assert said.require(0).err == ""
    assert "stored in" in said.out


def test_warnings_go_to_the_error_stream(robust: Robust, tiny: Path) -> None:
    said = robust("train", "tiny.yaml", "train.epochs=0", "evaluate={}", "threat.eps=0.031", "-q").require(0)
    assert said.err.startswith("warning: threat.eps: 0.031 is near 8/255")


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (("gone.yaml",), ("error: gone.yaml: no such file",)),
        (("no_such_spec",), ("error: unknown experiment 'no_such_spec'",)),
        (("tiny.yaml", "train.epochs"), ("error: override 'train.epochs': write key.subkey=value",)),
        (("tiny.yaml", "train.epochs=x", "threat.eps=8"), ("error: tiny.yaml: 2 problems", "write 8/255")),
        (("tiny.yaml", "train.device=tpu"), ("train.device: 'tpu' is not one of auto, cpu, cuda, cuda:i",)),
        (("tiny.yaml", "train.device=cpu:1"), ("train.device: 'cpu:1' is not one of auto, cpu, cuda, cuda:i",)),
        (("tiny.yaml", "train.device=cuda:99"), ("train.device: 'cuda:99': this machine has",)),
        (
            ("tiny.yaml", "data.val_size=5000"),
            ("data.val_size: 5000 of 1437 train images leave no image for training",),
        ),
        (("tiny.yaml", "data.train_size=5000"), ("data.train_size: 5000 is more than the 1387 train images",)),
        (
            ("tiny.yaml", "train.drop_last=true", "train.batch_size=500"),
            ("train.batch_size: 500 is more than the 128",),
        ),
        (("tiny.yaml", "data={name: npz, path: gone.npz, val_size: 5}"), ("data.path: there is no file",)),
        (("tiny.yaml", "data={name: mnist, val_size: 5}"), ("data.root: MNIST is not in",)),
        (("tiny.yaml", "data.augment.crop=9"), ("data.augment.crop: 9 pixels of padding cannot be mirrored",)),
        (("tiny.yaml", "evaluate.clean.examples=361"), ("evaluate.clean.examples: 361; there are 360 test images",)),
        (("tiny.yaml", "evaluate={w: {name: worst_case, members: []}}"), ("members is empty",)),
    ],
)
def test_mistakes_of_the_user_exit_with_2_and_a_message(
    robust: Robust, tiny: Path, words: tuple[str, ...], texts: tuple[str, ...]
) -> None:
    said = robust("train", *words).require(2, *texts)
    assert said.err.startswith("error: ")
    assert said.out == ""
    assert not Path("runs").exists()


def test_a_refused_reproduction_is_not_listed_as_a_run(robust: Robust) -> None:
    robust("reproduce", "mnist/pgd_at", "data.root=nowhere", "train.device=cpu").require(
        2, "MNIST is not in", "nowhere"
    )
    robust("runs").require(0, "no runs in runs")
    assert not Path("runs").exists()


def test_a_run_that_is_refused_when_it_is_resumed_keeps_what_it_has(robust: Robust, tiny: Path) -> None:
    np.savez(
        "here.npz",
        **{
            f"{name}_{part}": np.zeros(size, np.uint8)
            for name, size in (("x", (40, 8, 8)), ("y", 40))
            for part in ("train", "test")
        },
    )
    words = ("train", "tiny.yaml", "data={name: npz, path: here.npz, val_size: 10}", "-q", "evaluate={}")
    robust(*words).require(0)
    (folder,) = Path("runs").glob("tiny/*")
    (folder / "results.json").unlink()
    before = sorted(folder.rglob("*"))
    Path("here.npz").unlink()
    robust(*words, "--resume").require(2, "there is no file")
    assert sorted(folder.rglob("*")) == before


def test_an_error_before_the_images_leaves_nothing_to_resume(robust: Robust, tiny: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    y = np.arange(40) % 10
    words = ("train", "tiny.yaml", "data.train_size=20", "data.val_size=10", "-q", "evaluate={}")
    robust(*words, "data.name=npz", "data.path=here.npz").require(2, "there is no file")
    np.savez("here.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    robust(*words, "data.name=npz", "data.path=here.npz").require(0)


def test_a_runs_folder_that_cannot_be_one_is_named(robust: Robust, tiny: Path) -> None:
    robust("train", "tiny.yaml", "--runs", "tiny.yaml").require(2, "tiny.yaml")


def test_an_unfinished_run_is_resumed_only_on_request(robust: Robust, tiny: Path) -> None:
    robust("train", "tiny.yaml", "-q").require(0)
    folder = the_run(Path("runs"))
    whole = read_json(folder.results)
    folder.results.unlink()
    robust("train", "tiny.yaml").require(2, "this run exists and is unfinished, 1 epoch;", "--resume")
    robust("train", "tiny.yaml", "--resume").require(0)
    # The chain covers provenance.json, which has one session more.
    assert {**read_json(folder.results), "chain": None} == {**whole, "chain": None}
    assert len(read_json(folder.provenance)["sessions"]) == 2


def test_changed_images_are_refused_when_a_run_is_resumed(robust: Robust, tiny: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    y = np.arange(40) % 10
    np.savez("mine.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    words = ("train", "tiny.yaml", "data={name: npz, path: mine.npz, val_size: 10}", "evaluate={}", "-q")
    robust(*words).require(0)
    the_run(Path("runs")).results.unlink()
    np.savez("mine.npz", x_train=x + 1, y_train=y, x_test=x, y_test=y)
    robust(*words, "--resume").require(2, "the data changed")
    np.savez("mine.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    robust(*words, "--resume").require(0)


def test_a_tampered_spec_is_refused_when_a_run_is_resumed(robust: Robust, tiny: Path) -> None:
    robust("train", "tiny.yaml", "-q", "evaluate={}").require(0)
    folder = the_run(Path("runs"))
    folder.results.unlink()
    text = folder.spec.read_text(encoding="utf-8")
    folder.spec.write_text(text.replace("steps: 2", "steps: 3", 1), encoding="utf-8")
    robust("train", "tiny.yaml", "evaluate={}", "--resume").require(2, "holds a spec of digest")


def test_a_broken_checkpoint_is_named_when_a_run_is_resumed(robust: Robust, tiny: Path) -> None:
    robust("train", "tiny.yaml", "-q", "evaluate={}").require(0)
    folder = the_run(Path("runs"))
    folder.results.unlink()
    folder.last.write_bytes(folder.last.read_bytes()[:1000])
    robust("train", "tiny.yaml", "evaluate={}", "--resume").require(2, "last.pt: the file is truncated")


def test_a_loss_that_is_no_number_ends_with_4(robust: Robust, tiny: Path) -> None:
    said = robust("train", "tiny.yaml", "train.lr=1e30", "train.epochs=3", "-q")
    said.require(4, "training failed: the loss is not finite in epoch", "update")
    folder = the_run(Path("runs"))
    assert folder.status() == "failed"
    assert not folder.is_finished
    weights = Checkpoint.read(folder.last).weights
    assert all(bool(torch.isfinite(value).all()) for value in weights.values())
    robust("train", "tiny.yaml", "train.lr=1e30", "train.epochs=3", "--resume", "-q").require(4)


@pytest.mark.parametrize(
    ("policy", "code", "status", "epochs"),
    [("stop", 4, None, 1), ("rewind", 0, "rewound", 1), ("continue", 0, "collapsed", 2)],
)
def test_a_collapse_is_treated_as_specified_and_never_hidden(
    robust: Robust, tiny: Path, monkeypatch: pytest.MonkeyPatch, policy: str, code: int, status: str | None, epochs: int
) -> None:
    # Every check counts as a collapse.
    monkeypatch.setattr(collapse, "_DROP", -1.0)
    monkeypatch.setattr(collapse, "_GAP", -2.0)
    words = ("train", "tiny.yaml", "train.epochs=2", f"train.on_collapse={policy}", "-q")
    said = robust(*words).require(code)
    folder = the_run(Path("runs"))
    assert len(folder.epochs()) == epochs
    if status is None:
        assert "training failed: robustness collapsed in epoch 1" in said.err
        assert not folder.is_finished
        assert folder.status() == "collapsed"
        robust(*words, "--resume").require(4)
    else:
        assert f"tiny, seed 0: {status}" in said.out
        results = read_json(folder.results)
        assert (results["status"], results["collapsed_at"]) == (status, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGINT", marks=pytest.mark.full)])
def test_a_signal_exits_with_3_and_prints_how_to_resume(tiny: Path, name: str) -> None:
    sessions = Sessions(tiny.parent)
    process = sessions.start("train", "tiny.yaml", "train.epochs=5000", "train.check_examples=1")
    sessions.wait_for("epoch")
    send(process, name)
    assert sessions.end_of(process) == 3
    said = sessions.log.read_text(encoding="utf-8")
    assert "continue with --resume" in said
    assert "stopped" in said
    assert ResumableCheckpoint.read(the_run(Path("runs")).last).training.updates > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("SIGTERM", marks=pytest.mark.full), "SIGINT"])
def test_a_signal_during_the_evaluations_ends_with_3_too(tiny: Path, name: str) -> None:
    sessions = Sessions(tiny.parent)
    long = "evaluate.long={name: attack, attack: {name: pgd, steps: 100000, restarts: 100}}"
    process = sessions.start("train", "tiny.yaml", "train.epochs=0", long)
    sessions.wait_for("evaluating long")
    send(process, name)
    assert sessions.end_of(process) == 3
    assert "continue with --resume" in sessions.log.read_text(encoding="utf-8")
    folder = the_run(Path("runs"))
    assert folder.evaluation("clean").result.exists()
    assert not folder.evaluation("long").result.exists()
    assert not folder.is_finished


def send(process: BaseProcess, name: str) -> None:
    """Send a process a signal."""
    assert process.pid is not None
    os.kill(process.pid, getattr(signal, name))


def test_a_bug_of_ours_ends_with_70_and_its_traceback(robust_process: Robust, tiny: Path) -> None:
    code = (
        "import sys\nfrom robustcli.cli import main as cli\nfrom robustcli.specs import experiments\n"
        "def broken(*a, **k):\n    raise ZeroDivisionError('ours')\n"
        "experiments.find = broken\nsys.argv = ['robust', 'validate', 'x']\ncli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 70
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError: ours" in done.stderr


# eval


def evaluated(robust: Robust, *words: object) -> dict[str, Any]:
    """What `robust eval --json` prints."""
    said = robust("eval", *words, "--json", "--quiet").require(0)
    assert [line for line in said.err.splitlines() if "stored result of" not in line] == []
    value: dict[str, Any] = json.loads(said.out)
    return value


def numbers(result: dict[str, Any]) -> dict[str, Any]:
    """The parts of an evaluation that a second run reproduces."""
    stages = [{**stage, "seconds": None} for stage in result["stages"]]
    return {**result, "seconds": None, "stages": stages}


@pytest.mark.parametrize(("seed", "is_process"), [(0, True), (3, False)])
@pytest.mark.slow
def test_a_checkpoint_without_its_run_gives_the_same_numbers(
    robust_process: Robust, robust: Robust, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int,
    is_process: bool,
) -> None:  # fmt: skip
    robust("train", "tiny.yaml", f"seed={seed}", "-q").require(0)
    folder = the_run(Path("runs"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copyfile(folder.best, elsewhere / "best.pt")
    results = read_json(folder.results)
    shutil.rmtree("runs")
    monkeypatch.chdir(elsewhere)
    words = ("eval", "best.pt", "--json", "--quiet")
    said = (robust_process(*words, cwd=elsewhere) if is_process else robust(*words)).require(0)
    again = json.loads(said.out)
    assert {key: numbers(value) for key, value in again["evaluations"].items()} == {
        key: numbers(value) for key, value in results["evaluations"].items()
    }
    assert again["spec_digest"] == results["spec_digest"]
    assert again["training_seed"] == seed
    assert again["notes"] == []
    assert sorted(path.name for path in elsewhere.iterdir()) == ["best.pt", "evals"]


def test_a_table_is_printed_without_json(robust: Robust, trained: RunFolder) -> None:
    said = robust("eval", trained.best).require(0, "evaluating pgd")
    assert "linf 0.1" in said.out
    assert "evaluating" not in said.out
    assert "pgd-3-1" in robust("eval", trained.best, "--wide").require(0).out
    assert "stored result of" in robust("eval", trained.best, "--quiet").require(0).err


def test_last_weights_are_evaluated_too(robust: Robust, trained: RunFolder) -> None:
    assert evaluated(robust, trained.last, "--attack", "clean", "--examples", 5)["checkpoint"] == "last.pt"


def test_the_threat_is_replaced(robust: Robust, trained: RunFolder) -> None:
    value = evaluated(robust, trained.best, "--eps", "8/255", "--norm", "l2", "--examples", 20, "--attack", "pgd")
    assert value["threat"] == {"norm": "l2", "eps": "8/255"}
    (result,) = value["evaluations"].values()
    assert (result["norm"], result["eps"], result["eps_value"], result["total"]) == ("l2", "8/255", 8 / 255, 20)


def test_at_radius_0_an_attack_finds_nothing(robust: Robust, trained: RunFolder) -> None:
    value = evaluated(robust, trained.best, "--eps", "0")["evaluations"]
    assert value["pgd"]["survivors"] == value["clean"]["survivors"]


@pytest.mark.parametrize(
    ("words", "evaluator", "expected"),
    [
        (("--attack", "pgd"), "attack", {"steps": 3, "keep": "fooled", "restarts": 1}),  # as the spec has it
        (
            ("--attack", "pgd", "--steps", "4", "--restarts", "2", "--step-size", "2/255", "--loss", "margin"),
            "attack",
            {"steps": 4, "keep": "fooled", "restarts": 2, "step_size": 2 / 255, "loss": "margin"},
        ),
        (("--attack", "fgsm"), "attack", {"name": "fgsm", "loss": "ce"}),
    ],
)
def test_an_attack_is_chosen(
    robust: Robust, trained: RunFolder, words: tuple[str, ...], evaluator: str, expected: dict[str, Any]
) -> None:
    value = evaluated(robust, trained.best, *words, "--examples", 10)["evaluations"]
    (result,) = value.values()
    assert result["evaluator"] == evaluator
    attack = result["parameters"]["attack"]
    assert {key: attack[key] for key in expected} == expected


def test_every_image_is_evaluated_by_default(robust: Robust, trained: RunFolder) -> None:
    value = evaluated(robust, trained.best, "--attack", "fgsm")["evaluations"]
    assert value["fgsm"]["total"] == 360


def test_parts_of_autoattack_are_chosen(robust: Robust, trained: RunFolder) -> None:
    words = ("--attack", "autoattack", "--examples", 4)
    result = evaluated(robust, trained.best, *words, "--attacks", "apgd-ce, fab-t")["evaluations"]["autoattack"]
    assert [stage["name"] for stage in result["stages"]] == ["apgd-ce", "fab-t"]
    robust("eval", trained.best, *words, "--attacks", "fabt").require(2, "'fabt' is not one", "did you mean 'fab-t'?")


def test_autoattack_is_chosen(robust: Robust, trained: RunFolder) -> None:
    words = ("--attack", "autoattack", "--examples", 4, "--batch-size", 2)
    result = evaluated(robust, trained.best, *words)["evaluations"]["autoattack"]
    assert result["parameters"] == {
        "version": "standard", "attacks": None, "engine": "native", "precision": "fp32", "compile": False,
        "sample_first": None, "batch_size": 2,
    }  # fmt: skip
    assert result["total"] == 4


def test_a_name_under_evaluate_is_chosen(robust: Robust, tiny: Path) -> None:
    robust("train", "tiny.yaml", "train.epochs=0", "evaluate.mine={name: attack, attack: fgsm}", "-q").require(0)
    value = evaluated(robust, the_run(Path("runs")).best, "--attack", "mine", "--examples", 7)["evaluations"]
    assert list(value) == ["mine"]
    assert value["mine"]["total"] == 7


def test_the_seed_changes_the_noise_and_nothing_else(robust: Robust, trained: RunFolder) -> None:
    words = (trained.best, "--attack", "pgd", "--examples", 30)
    first, second, other = (evaluated(robust, *words, "--seed", seed)["evaluations"]["pgd"] for seed in (5, 5, 6))
    assert numbers(first) == numbers(second)
    assert (first["seed"], other["seed"]) == (5, 6)


def test_the_batch_size_changes_no_number(robust: Robust, trained: RunFolder) -> None:
    one, many = (evaluated(robust, trained.best, "--batch-size", size)["evaluations"] for size in (1, 50))
    assert one["pgd"]["parameters"]["batch_size"] == 1
    for key in one:
        assert one[key]["survivors"] == many[key]["survivors"]


def test_the_batch_size_reaches_the_members_of_a_worst_case(robust: Robust, trained: RunFolder) -> None:
    wish = "evaluate.both={name: worst_case, members: [clean, {name: attack, attack: fgsm}]}"
    value = evaluated(robust, trained.best, wish, "--attack", "both", "--examples", 9, "--batch-size", 4)
    members = value["evaluations"]["both"]["parameters"]["members"]
    assert [member["batch_size"] for member in members] == [4, 4]


def test_the_json_is_also_written_to_a_file(robust: Robust, trained: RunFolder, tmp_path: Path) -> None:
    out = tmp_path / "new" / "result.json"
    printed = evaluated(robust, trained.best, "--attack", "clean", "--examples", 5, "--out", out)
    assert read_json(out) == printed
    assert {"schema", "checkpoint", "name", "spec_digest", "training_seed", "threat", "data", "provenance"} <= set(
        printed
    )


def test_an_archive_of_the_same_images_gives_the_same_numbers(
    robust: Robust, trained: RunFolder, tmp_path: Path
) -> None:
    from sklearn.datasets import load_digits

    order = np.random.RandomState(0).permutation(1797)[:60]
    # The archive has other numbers because 255 v / 16 is rounded.
    x = np.round(load_digits().images[order] * 255 / 16).astype(np.uint8)
    y = load_digits().target[order]
    np.savez(tmp_path / "mine.npz", x_test=x, y_test=y, classes=np.array([str(digit) for digit in range(10)]))
    value = evaluated(robust, trained.best, "--data", tmp_path / "mine.npz", "--attack", "clean")
    assert value["evaluations"]["clean"]["total"] == 60
    assert value["notes"] == ["the images are not those that the checkpoint was trained and selected with"]
    own = evaluated(robust, trained.best, "--attack", "clean", "--examples", 60)["evaluations"]["clean"]
    same = sum(a == b for a, b in zip(own["survivors"], value["evaluations"]["clean"]["survivors"], strict=True))
    assert same >= 57
    again = evaluated(robust, trained.best, "--data", "digits", "--attack", "clean", "--examples", 60)
    assert again["evaluations"]["clean"]["survivors"] == own["survivors"]
    assert again["notes"] == []


def test_images_are_found_by_an_override(robust: Robust, tiny: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    y = np.arange(40) % 10
    np.savez("mine.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    data = "data={name: npz, path: mine.npz, val_size: 10}"
    robust("train", "tiny.yaml", data, "train.epochs=0", "evaluate={clean: clean}", "-q").require(0)
    best = the_run(Path("runs")).best
    Path("mine.npz").rename("moved.npz")
    robust("eval", best).require(2, "data.path: there is no file")
    value = evaluated(robust, best, "data.path=moved.npz")
    assert value["notes"] == []
    assert value["evaluations"]["clean"]["total"] == 40


def archive(path: Path, **arrays: Any) -> str:
    """An archive of 20 digit-sized images, with some of its arrays replaced."""
    x = np.zeros((20, 8, 8), dtype=np.uint8)
    np.savez(path, **{"x_test": x, "y_test": np.arange(20) % 10, **arrays})
    return str(path)


BIG = {"x_test": np.zeros((20, 28, 28), dtype=np.uint8)}
COLOR = {"x_test": np.zeros((20, 8, 8, 3), dtype=np.uint8)}


@pytest.mark.parametrize(
    ("arrays", "texts"),
    [
        (BIG, ("takes 1x8x8 images of 10 classes; the data have 1x28x28 images of 10 classes",)),
        (COLOR, ("takes 1x8x8 images of 10 classes; the data have 3x8x8 images of 10 classes",)),
        ({"x_test": np.full((20, 8, 8), 2, dtype=np.float32)}, ("x_test",)),
        ({"y_test": np.arange(19) % 10}, ("y_test has 19 labels for 20 images",)),
    ],
)
def test_images_of_another_shape_are_refused(
    robust: Robust, trained: RunFolder, tmp_path: Path, arrays: dict[str, Any], texts: tuple[str, ...]
) -> None:
    path = archive(tmp_path / "mine.npz", **arrays)
    robust("eval", trained.best, "--data", path, "--attack", "clean", "--examples", 20).require(2, *texts)


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (("--attack", "pgdd"), ("there is no evaluator or attack 'pgdd'; did you mean 'pgd'?",)),
        (("--attack", "trades"), ("there is no evaluator or attack 'trades'",)),
        (("--steps", "3"), ("--steps needs --attack",)),
        (("--step-size", "3/255"), ("--step-size needs --attack",)),
        (("--attack", "clean", "--steps", "3"), ("attack.steps: unknown parameter of 'clean' in evaluators",)),
        (("--attack", "fgsm", "--restarts", "3"), ("restarts: unknown parameter of 'fgsm' in attacks",)),
        (("--attack", "pgd", "--loss", "cee"), ("loss: 'cee' is not one of the choices; did you mean 'ce'?",)),
        (("--attack", "pgd", "--steps", "-1"), ("steps: -1 is outside the range",)),
        (("--attack", "pgd", "--step-size", "two"), ("step_size: 'two' is not a number",)),
        (("--attack", "pgd", "--step-size", "2"), ("step_size: 2 is larger than the pixel range [0, 1]; write 2/255",)),
        (("--attack", "worst_case"), ("members: missing",)),
        (("--eps", "8"), ("threat.eps: 8 is larger than the pixel range [0, 1]; write 8/255",)),
        (("--eps", "big"), ("threat.eps: 'big' is not a number or a quotient",)),
        (("--eps", "1e999"), ("threat.eps",)),
        (("--eps=-1",), ("threat.eps: -1 is outside the range",)),
        (("--norm", "l3"), ("l3",)),
        (("--examples", "0"), ("examples",)),
        (("--examples", "361"), ("361 test images requested; there are only 360",)),
        (("--seed", "-1"), ("seed",)),
        (("--batch-size", "0"), ("batch-size",)),
        (("--device", "tpu"), ("--device: 'tpu' is not one of auto, cpu, cuda, cuda:i",)),
        (("--device", "cpu:1"), ("--device: 'cpu:1' is not one of auto, cpu, cuda, cuda:i",)),
        (("--device", "cuda:99"), ("this machine has",)),
        (("--data", "digitss"), ("'digitss' is not a data set, folder or .npz file; did you mean 'digits'?",)),
        (("--data", "gone.npz"), ("there is no file",)),
        (("threat.esp=1",), ("threat.esp: unknown parameter of threat; did you mean 'eps'?",)),
        (("train.epochs",), ("train.epochs: no such file",)),
        (("architecture.width=5",), ("architecture",)),
        (("architecture.activation=gelu",), ("architecture",)),
        (("--attack", "clean", "--examples", "5", "--out", "."), (".",)),
    ],
)
def test_what_cannot_be_evaluated_ends_with_2(
    robust: Robust, trained: RunFolder, words: tuple[str, ...], texts: tuple[str, ...], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    robust("eval", trained.best, *words).require(2, *texts)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [("--attack", "none"), ("--attack", "pgd", "--steps", "0")])
def test_an_evaluation_without_an_attack_is_refused(robust: Robust, trained: RunFolder, words: tuple[str, ...]) -> None:
    robust("eval", trained.best, *words).require(2, "attacks nothing; for clean accuracy write --attack clean")


def test_what_is_no_checkpoint_ends_with_2(robust: Robust, tiny: Path) -> None:
    robust("eval", "gone.pt").require(2, "gone.pt: no such file")
    robust("eval", "tiny.yaml").require(2, "tiny.yaml: the file is a text that begins with '#")
    torch.save({"weight": torch.zeros(2)}, "foreign.pt")
    robust("eval", "foreign.pt").require(2, "foreign.pt: not written by `robust train`", "--architecture NAME")


def test_a_checkpoint_without_evaluations_needs_an_attack(robust: Robust, tiny: Path) -> None:
    robust("train", "tiny.yaml", "train.epochs=0", "evaluate={}", "-q").require(0)
    best = the_run(Path("runs")).best
    robust("eval", best).require(2, "has no evaluation; pass --attack")
    robust("eval", best, "--attack", "clean").require(0)


# list, show, validate, cp


@pytest.mark.parametrize("family", [*FAMILIES, "experiments"])
def test_a_family_is_listed(robust: Robust, family: str) -> None:
    said = robust("list", family).require(0)
    shipped = [*experiments.names(), *experiments.sweeps()]
    known = shipped if family == "experiments" else list(catalog(family))
    rows = {line.split()[0]: line for line in said.out.splitlines() if line.strip()}
    for name in known:
        summary = experiments.summary(name) if family == "experiments" else catalog(family)[name].summary
        assert summary in rows[name]


def test_everything_is_listed_at_once(robust: Robust) -> None:
    said = robust("list").require(0)
    for family in (*FAMILIES, "experiments"):
        assert f"\n{family}" in f"\n{said.out}"
    former = robust("list", "regularisers").require(0, "'regularisers' is now 'regularizers'")
    assert former.out == robust("list", "regularizers").require(0).out
    robust("list", "defences").require(2, "there is no family 'defences'; did you mean 'defenses'?")


def test_architectures_of_one_file_are_listed(robust: Robust) -> None:
    said = robust("list", "architectures", "--family", "regnet").require(0).out
    names = [line.split()[0] for line in said.splitlines() if line.strip()]
    assert names == ["architectures", "regnet", "regnet_rule", "regnet_stages"]
    said = robust("list", "architectures", "--family", "regnt").require(
        2, "--family: no file of architectures", "regnt"
    )
    assert "did you mean 'regnet'?" in said.err


@pytest.mark.slow
def test_architectures_within_a_budget_are_listed_with_their_size(robust: Robust) -> None:
    within = ("--max-parameters", "22M", "--max-macs", "600M")
    said = robust("list", "architectures", "--family", "resnet", *within).require(0).out
    assert "architectures by default, for 3x32x32 images of 10 classes" in said
    (row,) = [line.split() for line in said.splitlines() if line.split()[:1] == ["resnet18"]]
    assert row[1:3] == ["11,173,962", "555.4"]
    # Of 21,282,122 weights, but 1.1594 G multiply-accumulates.
    assert "resnet34" not in said
    said = robust("list", "architectures", "--family", "resnet", "--max-parameters", "22M").require(0).out
    assert "resnet34" in said
    assert "resnet50" not in said


def test_a_budget_below_all_names_the_smallest_architecture(robust: Robust) -> None:
    said = robust("list", "architectures", "--family", "wide_resnet", "--max-macs", "1.5k").require(0).out
    assert "wide_resnet has the fewest parameters, 36,479,194, and" in said
    assert "5,243.3 million" in said
    match = ("--family", "wide_resnet", "--match", "transformer")
    robust("list", "architectures", "--max-macs", "1.5k", *match).require(2, "--match: nothing has 'transformer'")
    said = robust("list", "architectures", "--family", "torchvision_models", "--max-parameters", "1G").require(0).out
    assert said == "left out because their size depends on settings: torchvision\n"
    said = robust("list", "architectures", "--family", "timm_models", "--max-parameters", "1G").require(0).out
    assert said == "left out because their size depends on settings: timm\n"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--family", "resnet"), "--family: supported only by"),
        (("attacks", "--max-macs", "1G", "--family", "pgd"), "--family, --max-macs: supported only by"),
        (
            ("architectures", "--max-macs", "1T"),
            "--max-macs: '1T' is not a number; write for example 500k, 12M or 1.5G",
        ),
        (("architectures", "--max-parameters=-3"), "--max-parameters: '-3' is not a number"),
    ],
)
def test_filters_that_mean_nothing_are_refused(robust: Robust, words: tuple[str, ...], text: str) -> None:
    robust("list", *words).require(2, text)


@pytest.mark.parametrize("name", NAMES)
def test_a_member_is_shown_with_every_parameter(robust: Robust, name: str) -> None:
    said = robust("show", name).require(0)
    for family in FAMILIES:
        if name in catalog(family):
            member = catalog(family)[name]
            assert f"{name} ({family})" in said.out
            assert member.summary in " ".join(said.out.split())
            assert "Reference:" in said.out
            assert f"{member.path}:{member.line}" in said.out
            shown = {line.split()[0] for line in said.out.splitlines() if line.strip()}
            assert {*member.parameters, *member.replaceable} <= shown
    assert not [line for line in said.out.splitlines() if line.strip().startswith("_")]


def test_a_defense_is_shown_with_what_an_update_costs(robust: Robust) -> None:
    def shown(name: str) -> str:
        return " ".join(robust("show", name).require(0).out.split())

    passes = "12 forward, 10 input-gradient and 2 weight-gradient passes (about 26 forwards)."
    assert f"Cost of one update with defaults: {passes}" in shown("mart")
    assert "Cost" not in shown("cosine")
    assert "with others [{'norm': 'l2', 'eps': 0.5}] and otherwise defaults: 23 forward" in shown("multibn")
    assert "Adds to an update, each time the loss is differentiated: 1 forward and 1 weight-" in shown("awp")
    assert "no passes through the network" in shown("svc")
    assert "Cost for one image with defaults, at most: 5001 forward passes." in shown("square")
    assert "Cost: that of the attacks inside it." in shown("attack")


def test_a_member_is_shown_with_advice(robust: Robust) -> None:
    lines = robust("show", "free").require(0).out.splitlines()
    starts = [line.partition(":")[0] for line in lines if line.startswith(("When", "First", "Cost", "Reference"))]
    assert starts == ["When to use", "First setting", "Cost of one update with defaults", "Reference"]
    assert sum(line.startswith("Reference: ") for line in robust("show", "digits").require(0).out.splitlines()) == 1


def test_an_architecture_is_shown_with_what_it_consists_of(robust: Robust) -> None:
    said = robust("show", "preact_resnet18").require(0).out
    assert "3x32x32 images of 10 classes: 11,172,170 parameters, 0.5554 G multiply-accumulates" in said
    lines = [line.split() for line in said.splitlines()]
    assert ["layer4", "4x4", "512", "8,392,192", "134.2", "109x109", "pixels"] in lines
    assert "its parts depend on its settings: write model=... after" in robust("show", "torchvision").require(0).out
    # The size of a token map is the grid of patches.
    tokens = ["8x8", "1536", "22,702,944", "1,475.1", "whole", "image"]
    assert tokens in [line.split() for line in robust("show", "xcit").require(0).out.splitlines()]
    assert "10^6" not in robust("show", "mart").require(0).out


@pytest.mark.parametrize(
    ("words", "size"),
    [
        ("wide_resnet depth=70 widen=16", "266,796,506 parameters, 38.7642 G"),
        ("resnet18 strides=[1,1,2,2]", "11,173,962 parameters, 1.7634 G"),
        ("robust_resnet budget=10 block=basic", "38,323,482 parameters, 10.8362 G"),
        ("torchvision model=resnet18", "11,181,642 parameters, 0.0370 G"),
        ("torchvision model=resnet18 stem=small", "11,173,962 parameters, 0.5554 G"),
    ],
)
def test_an_architecture_is_shown_with_the_settings_that_are_written(robust: Robust, words: str, size: str) -> None:
    said = robust("show", *words.split()).require(0).out
    assert f"{words.partition(' ')[2]}, 3x32x32 images of 10 classes: {size} multiply-accumulates" in said


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("wide_resnet dept=34", "dept: unknown parameter of 'wide_resnet' in architectures; did you mean 'depth'?"),
        ("wide_resnet depth=deep", "depth: 'deep' is not a whole number"),
        ("wide_resnet depth=35", "architecture.depth: 35 is not 6 n + 4"),
        ("wide_resnet depth", "'depth' is not an override; write key=value"),
        ("trades beta=3", "only architectures take settings, and 'trades' is not one"),
        ("wide_resne depth=34", "did you mean 'wide_resnet'?"),
    ],
)
def test_wrong_settings_are_refused(robust: Robust, words: str, text: str) -> None:
    robust("show", *words.split()).require(2, text)


@pytest.mark.slow
def test_an_architecture_is_shown_with_what_is_published_of_it(robust: Robust) -> None:
    lines = [line.split() for line in robust("show", "wide_resnet", "--published").require(0).out.splitlines()]
    (row,) = [line for line in lines if "70.69" in line]
    (other,) = [line for line in lines if "42.67" in line]
    assert "CIFAR-100, linf 8/255" in " ".join(other)
    assert lines.index(row) < lines.index(other)
    best, last = (next(line for line in lines if number in line) for number in ("73.71", "51.66"))
    assert lines.index(best) < lines.index(row) < lines.index(last)
    assert " ".join(row).startswith("depth=70 widen=16 form=deepmind activation=silu 93.25 70.69 TRADES generated, 50M")
    assert " ".join(row).endswith("CIFAR-10, linf 8/255 Wang et al., ICML 2023; by RobustBench")
    said = robust("show", "robust_resnet", "--published").require(0).out
    assert "defaults" in said
    assert "Huang et al., CVPR 2023; by the authors" in said
    # Its robust accuracy is unknown.
    assert "AutoAttack" not in robust("show", "vgg16").require(0).out


def test_a_long_table_of_published_accuracies_is_cut_to_the_best(robust: Robust) -> None:
    said = robust("show", "wide_resnet").require(0).out
    shown = said.count("by RobustBench") + said.count("by the authors")
    best, second, third = (f" {number:.2f} " for number in (73.71, 71.59, 70.69))
    assert (best in said, second in said, third in said) == (True, True, False)
    more = int(re.search(r"(\d+) more: robust show wide_resnet --published", said)[1])  # type: ignore[index]
    assert (shown, more) == (7, len(published("wide_resnet")) - 7)
    # A short one is printed as it is.
    said = robust("show", "robnet").require(0).out
    assert said.count("by the authors") == len(published("robnet"))
    assert "more:" not in said
    robust("show", "trades", "--published").require(2, "no published accuracies of 'trades'")


@pytest.mark.parametrize("name", ["demo/digits_pgd_at", experiments.sweeps()[0]])
def test_an_experiment_is_shown_as_it_is_written(robust: Robust, name: str) -> None:
    assert robust("show", name).require(0).out == experiments.find(name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["tradess", "demo/nothing", ""])
def test_what_is_unknown_cannot_be_shown(robust: Robust, name: str) -> None:
    said = robust("show", name).require(2)
    assert name != "tradess" or "did you mean 'trades'?" in said.err


@pytest.mark.slow
def test_specs_are_validated(robust: Robust, tiny: Path) -> None:
    digest = ExperimentSpec.read(tiny).digest
    said = robust("validate", "tiny.yaml", *experiments.names()).require(0)
    assert f"tiny.yaml: valid, digest {digest}" in said.out
    assert said.out.count(": valid, digest ") == 1 + len(experiments.names())
    tiny.write_text(TINY.replace("eps: 0.1", "eps: 0.031"), encoding="utf-8")
    robust("validate", "tiny.yaml").require(0, "warning: threat.eps: 0.031 is near")
    robust("validate", "tiny.yaml").require(0, "note: defense: 2 steps of 0.00775 from a random start cannot reach")


def test_every_problem_of_every_spec_is_shown(robust: Robust, tiny: Path) -> None:
    Path("bad.yaml").write_text(
        TINY.replace("eps: 0.1", "eps: 8").replace("epochs: 1", "epochs: one"), encoding="utf-8"
    )
    Path("worse.yaml").write_text("name: [", encoding="utf-8")
    said = robust("validate", "bad.yaml", "tiny.yaml", "worse.yaml", "gone.yaml").require(2)
    assert "tiny.yaml: valid" in said.out
    assert "bad.yaml: 2 problems" in said.err
    assert "line 5: threat.eps: 8 is larger" in said.err
    assert "line 8: train.epochs: 'one' is not a whole number" in said.err
    assert "worse.yaml: 1 problem" in said.err
    assert "gone.yaml: no such file" in said.err
    robust("validate").require(2, "no spec given")


def test_the_schema_is_printed_as_json(robust: Robust) -> None:
    schema = json.loads(robust("validate", "--schema").require(0).out)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert "defenses.trades" in schema["$defs"]


def test_a_shipped_spec_is_copied_and_nothing_is_overwritten(robust: Robust, tiny: Path) -> None:
    name = "demo/digits_pgd_at"
    robust("cp", name, "mine.yaml").require(0, "mine.yaml: copied from demo/digits_pgd_at")
    assert Path("mine.yaml").read_bytes() == experiments.find(name).read_bytes()
    robust("validate", "mine.yaml").require(0)
    Path("mine.yaml").write_text("mine\n", encoding="utf-8")
    robust("cp", name, "mine.yaml").require(2, "exists already; choose another name")
    assert Path("mine.yaml").read_text(encoding="utf-8") == "mine\n"
    Path("folder").mkdir()
    robust("cp", name, "folder").require(0)
    robust("cp", name, "folder").require(2, "folder/digits_pgd_at.yaml: exists already")
    robust("cp", name, "no/such/folder.yaml").require(2, "there is no folder no/such")
    robust("cp", "demo/nothing", "new.yaml").require(2, "unknown experiment")
    assert not Path("new.yaml").exists()


# runs, report, reproduce, demo


def test_runs_are_listed(robust: Robust, trained: RunFolder, tiny: Path) -> None:
    robust("runs").require(0, "no runs in runs")
    assert json.loads(robust("runs", "--json").require(0).out) == []
    shutil.copytree(trained.path.parent.parent, "runs")
    unfinished = Path("runs", "tiny", "00000000-s1")
    shutil.copytree(trained.path, unfinished)
    (unfinished / "results.json").unlink()
    rows = {row["run"]: row for row in json.loads(robust("runs", "--json").require(0).out)}
    row = rows["tiny/00000000-s1"]
    assert (row["status"], row["text"], row["epoch"], row["evaluations"]) == ("unfinished", "1 epoch", 0, {})
    whole = rows[f"tiny/{trained.path.name}"]
    results = read_json(trained.results)["evaluations"]
    assert whole["status"] == "finished"
    assert whole["evaluations"]["pgd"]["correct"] == results["pgd"]["correct"]
    assert (whole["defense"], whole["kind"], whole["date"][:2]) == ("pgd_at", "run", "20")
    said = robust("runs").require(0)
    assert "unfinished, 1 epoch " in said.out
    assert f"{100 * results['pgd']['accuracy']:.1f}" in said.out
    said = robust("runs", "--wide").require(0)
    assert f"pgd: {100 * results['pgd']['accuracy']:.1f} [" in said.out
    assert trained.path.name in robust("runs", "--runs", trained.path.parent.parent).require(0).out


def test_a_report_is_printed_or_put_into_a_file(robust: Robust, trained: RunFolder, tiny: Path) -> None:
    root = trained.path.parent.parent
    table = robust("report", root).require(0).out
    lines = table.splitlines()
    assert lines[0] == "| experiment | threat | seeds | evaluation | images | accuracy % | claimed % | device |"
    assert [line.split(" | ")[:5] for line in lines[2:]] == [
        ["| tiny", "linf 0.1", "0", "clean", "60"],
        ["| tiny", "linf 0.1", "0", "pgd-3-1", "60"],
    ]
    assert robust("report", trained.path).require(0).out == table
    page = Path("PAGE.md")
    page.write_text("before\n<!-- results -->\nold\n<!-- /results -->\nafter\n", encoding="utf-8")
    for _ in range(2):
        robust("report", root, "--into", page).require(0)
        assert page.read_text(encoding="utf-8") == (f"before\n<!-- results -->\n{table}<!-- /results -->\nafter\n")
    page.write_text("no block\n", encoding="utf-8")
    robust("report", root, "--into", page).require(2, "found no block; expected <!-- results -->")
    assert page.read_text(encoding="utf-8") == "no block\n"
    page.write_text("<!-- results -->\nnever closed\n", encoding="utf-8")
    robust("report", root, "--into", page).require(2, "found no block")
    robust("report", root, "--into", "gone.md").require(2, "gone.md")
    robust("report", "nowhere").require(2, "nowhere: no such file or folder")


def test_runs_that_differ_only_in_their_seed_share_a_row(robust: Robust, trained: RunFolder, tiny: Path) -> None:
    value = read_json(trained.results)
    for name, digest, seed, correct in (("a", "11", 0, 30), ("a", "11", 3, 36), ("a", "22", 0, 6)):
        folder = RunFolder(Path("runs", name, f"{digest}-s{seed}"))
        write_json(folder.provenance, read_json(trained.provenance))
        survivors = "1" * correct + "0" * (60 - correct)
        pgd = {**value["evaluations"]["pgd"], "survivors": survivors, "suspicions": []}
        claim = {"source": "A paper", "metrics": {"pgd": 0.8}}
        told = {"name": name, "spec_digest": digest, "seed": seed, "claim": claim, "evaluations": {"pgd": pgd}}
        write_json(folder.results, {**value, **told})
    rows = [line.split(" | ") for line in robust("report", "runs").require(0).out.splitlines()[2:]]
    assert [(row[2], row[6]) for row in rows] == [("0, 3", "80.0"), ("0", "80.0")]
    assert rows[0][5] == "55.0 ± 7.1 (50.0 to 60.0)"
    assert rows[1][5].startswith("10.0 [")


def test_a_claim_is_compared_and_a_finished_run_is_reused(robust: Robust, tiny: Path) -> None:
    tiny.write_text(
        TINY + "claim: {source: A paper, table: Table 1, metrics: {clean: 0.99, pgd: 0}, tolerance: 0.01,\n"
        "  selection: last epoch, hardware: one GPU, note: made up}\n",
        encoding="utf-8",
    )
    for _ in range(2):
        said = robust("reproduce", "tiny.yaml", "-q").require(0)
        for text in (
            "Claim of A paper, Table 1", "99.0", "below the claim", "selection: source last epoch; here robust on val",
            "hardware: source one GPU", "note: made up",
        ):  # fmt: skip
            assert text in said.out
    assert len(read_json(the_run(Path("runs")).provenance)["sessions"]) == 1
    # The claim is not part of the digest and may be corrected afterwards.
    tiny.write_text(TINY + "claim: {source: Another paper, metrics: {pgd: 0.5}, tolerance: 1}\n", encoding="utf-8")
    robust("reproduce", "tiny.yaml", "-q").require(0, "Another paper", "reproduced", "training took")


def test_several_seeds_are_compared_with_a_claim_by_their_mean(robust: Robust, tiny: Path) -> None:
    tiny.write_text(TINY + "claim: {source: A paper, metrics: {clean: 0.99, pgd: 0.05}}\n", encoding="utf-8")
    said = robust("reproduce", "tiny.yaml", "seed=0,1", "-q").require(0, "mean % [95 % of a run]")
    found = {seed: read_json(next(Path("runs/tiny").glob(f"*-s{seed}/results.json"))) for seed in (0, 1)}
    accuracies = [100 * found[seed]["evaluations"]["pgd"]["accuracy"] for seed in (0, 1)]
    assert f"pgd: {accuracies[0]:.1f} (seed 0), {accuracies[1]:.1f} (seed 1)" in said.out
    assert "from 2 seeds" in said.out
    robust("reproduce", "tiny.yaml", "train.lr=1,2").require(
        2, "train.lr: found several values; expected several seeds"
    )


def test_a_suspect_verdict_can_end_with_exit_code_1(robust: Robust, trained: RunFolder, tiny: Path) -> None:
    # One image per class: clean accuracy is at chance, which is suspect.
    words = ("eval", trained.best, "--attack", "pgd", "--steps", "2", "--examples", "20", "-q")
    said = robust(*words, "--json").require(0)
    suspect = json.loads(said.out)["evaluations"]["pgd"]["verdict"] == "SUSPECT"
    assert suspect
    robust(*words, "--fail-on", "suspect").require(
        1, "failed: pgd: the verdict is SUSPECT (--fail-on suspect)", "stored"
    )
    robust(*words, "--fail-on", "nothing").require(2)
    robust("reproduce", "tiny.yaml", "-q", "--fail-on", "suspect").require(1, "clean, pgd: the verdict is SUSPECT")


def test_a_spec_without_a_claim_is_reproduced_without_one(robust: Robust, tiny: Path) -> None:
    robust("reproduce", "tiny.yaml", "train.epochs=0", "evaluate={}", "-q").require(0, "has no claim")
    robust("reproduce", "nothing_like_it").require(2, "unknown experiment")


def test_the_demo_is_there(robust: Robust) -> None:
    robust("demo", "--help").require(0, "digits")


# The choice of weights


def test_numbers_of_weights_chosen_on_test_say_so(robust: Robust, tiny: Path) -> None:
    words = ("train", "tiny.yaml", "data.val_size=0", "train.allow_test_selection=true", "-q")
    said = robust(*words).require(0)
    results = read_json(the_run(Path("runs")).results)
    assert results["selection"] == {"by": "robust", "images": "test"}
    for result in results["evaluations"].values():
        assert any("test images" in warning for warning in result["warnings"])
    assert "selected on test images" in said.out
    value = evaluated(robust, the_run(Path("runs")).best, "--attack", "clean")
    assert any("test images" in note for note in value["notes"])


@pytest.mark.slow
def test_two_processes_do_not_write_one_run(tiny: Path, robust: Robust) -> None:
    sessions = Sessions(tiny.parent)
    words = ("train", "tiny.yaml", "train.epochs=5000", "train.check_examples=1")
    process = sessions.start(*words)
    try:
        sessions.wait_for("epoch")
        robust(*words, "--resume").require(2, "in use by another process")
    finally:
        process.terminate()
        sessions.end_of(process)


def test_validate_applies_overrides(robust: Robust) -> None:
    digest = robust("validate", "demo/digits_pgd_at").require(0).out
    assert robust("validate", "demo/digits_pgd_at", "train.lr=0.05").require(0).out != digest
    robust("validate", "demo/digits_pgd_at", "train.epocs=3").require(2, "did you mean 'epochs'?")


def test_cp_into_a_folder_keeps_the_name(robust: Robust, tmp_path: Path) -> None:
    robust("cp", "demo/digits_pgd_at", tmp_path).require(0)
    assert (tmp_path / "digits_pgd_at.yaml").is_file()


@pytest.mark.parametrize("words", [(), ("-h",), ("train", "-h")])
def test_help_is_printed_and_is_no_error(robust: Robust, words: tuple[str, ...]) -> None:
    assert "Usage" in robust(*words).require(0).out
