"""`robust eval` with kills and several workers gives the same numbers, and `robust verify` finds changes."""

import json
import re
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
from killing import Plan, Sessions
from shared import shared
from shell import Robust

from robustcli.cli.main import main
from robustcli.data.splits import Data
from robustcli.store.checkpoint import Checkpoint
from robustcli.store.files import read_json, write_json
from robustcli.store.runs import RunFolder, lock_folder

WORDS = ("--attack", "pgd", "--steps", "5", "--eps", "0.05", "--examples", "60", "--batch-size", "16")
WORDS += ("--save-examples",)


def facts(folder: Path) -> tuple[Any, ...]:
    """The results of an evaluation without its times."""
    result = read_json(folder / "evaluations" / "pgd.json")
    counts = [(stage["name"], stage["entered"], stage["broken"]) for stage in result["stages"]]
    return result["survivors"], result["forwards"], result["gradients"], counts, result["verdict"]


@pytest.fixture(scope="session")
def trained(well_trained: RunFolder) -> RunFolder:
    return well_trained


@pytest.fixture(scope="session")
def stored(trained: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished evaluation with adversarial examples, for tests that only read."""

    def evaluate(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch, suppress(SystemExit):
            patch.chdir(folder)
            patch.setattr(sys, "argv", ["robust", "eval", str(trained.best), *WORDS, "--quiet"])
            main()

    (path,) = (shared(tmp_path_factory, "evidence", evaluate) / "evals").iterdir()
    assert 5 < read_json(path / "evaluations" / "pgd.json")["correct"] < 55
    return path


def test_an_evaluation_leaves_its_files_and_no_journal(stored: Path) -> None:
    assert sorted(path.name for path in stored.iterdir()) == [
        "behavior.npz", "evaluations", "lock", "results.json",
    ]  # fmt: skip
    assert sorted(path.name for path in (stored / "evaluations").iterdir()) == [
        "pgd.adversarial.npz", "pgd.csv", "pgd.json",
    ]  # fmt: skip
    lines = (stored / "evaluations" / "pgd.csv").read_text().splitlines()
    assert lines[0] == "image,label,clean,broken_by,prediction,margin,size"
    assert len(lines) == 61


@pytest.mark.slow
def test_killed_anywhere_it_ends_with_the_same_numbers(trained: RunFolder, stored: Path, tmp_path: Path) -> None:
    """Each session is killed a few events later than the one before."""
    sessions = Sessions(tmp_path)
    kinds = ("sync", "rename", "renamed")
    codes = []
    for number in range(1, 60):
        codes.append(sessions.run("eval", str(trained.best), *WORDS, "--quiet", plan=Plan(kinds, at=number)))
        if codes[-1] == 0:
            break
    assert codes[-1] == 0
    assert len(codes) > 4, "killed too late to mean anything"
    (path,) = (tmp_path / "evals").iterdir()
    assert facts(path) == facts(stored)
    assert (path / "evaluations" / "pgd.csv").read_text() == (stored / "evaluations" / "pgd.csv").read_text()
    assert not list(path.glob("**/*.journal"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_prints_how_to_resume(
    trained: RunFolder, stored: Path, tmp_path: Path, number: signal.Signals
) -> None:
    sessions = Sessions(tmp_path)
    words = ("eval", str(trained.best), *WORDS, "--quiet")
    assert sessions.run(*words, plan=Plan(("renamed",), at=4, by=number)) == 3
    assert f"stopped by {number.name}; run the same command again to resume" in sessions.log.read_text()
    assert sessions.run(*words) == 0
    (path,) = (tmp_path / "evals").iterdir()
    assert facts(path) == facts(stored)


def test_a_finished_evaluation_is_read_and_not_repeated(
    robust: Robust, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: RunFolder
) -> None:
    shutil.copytree(stored, tmp_path / "evals" / stored.name)
    monkeypatch.chdir(tmp_path)
    said = robust("eval", trained.best, *WORDS).require(0, "stored in evals")
    assert "evaluating pgd: ..." not in said.err
    assert facts(tmp_path / "evals" / stored.name) == facts(stored)


def test_what_is_read_again_is_not_written_again(
    robust: Robust, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: RunFolder
) -> None:
    copy = Path(shutil.copytree(stored, tmp_path / "evals" / stored.name))
    before = (copy / "results.json").read_text()
    monkeypatch.chdir(tmp_path)
    robust("eval", trained.best, *WORDS, "--device", "cpu").require(0)
    assert (copy / "results.json").read_text() == before


def test_two_at_once_are_not_let_into_one_folder(
    robust: Robust, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: RunFolder
) -> None:
    monkeypatch.chdir(tmp_path)
    lock = lock_folder(tmp_path / "evals" / stored.name)
    said = robust("eval", trained.best, *WORDS, "--quiet").require(2, f"{stored.name}: in use by another process")
    assert "Traceback" not in said.err
    lock.release()
    robust("eval", trained.best, *WORDS, "--quiet").require(0)


def test_a_result_cut_short_is_one_clear_error(robust: Robust, stored: Path, tmp_path: Path) -> None:
    folder = tampered(stored, tmp_path)
    path = folder / "evaluations" / "pgd.json"
    path.write_text(path.read_text()[:100])
    robust("verify", folder).require(2, "pgd.json: not JSON")
    write_json(path, [1, 2])
    robust("verify", folder).require(2, "pgd.json: the file: found [1, 2]; expected keys and values")


def test_an_evaluation_may_have_any_name(robust: Robust, tmp_path: Path, trained: RunFolder) -> None:
    checkpoint = Checkpoint.read(trained.best)
    renamed = checkpoint.spec.replace("\n  pgd:", "\n  results:")
    checkpoint.model_copy(update={"spec": renamed}).write(tmp_path / "named.pt")
    robust("eval", tmp_path / "named.pt", "--attack", "results", "--quiet").require(0)
    (folder,) = (Path("evals")).iterdir()
    robust("verify", folder).require(0, "results: verified")


def test_a_source_that_changed_is_another_evaluation(robust: Robust, tmp_path: Path, trained: RunFolder) -> None:
    source = tmp_path / "source.pt"
    shutil.copyfile(trained.best, source)
    words = (
        "eval",
        trained.best,
        "--attack",
        "mim",
        "--source",
        source,
        "--eps",
        "0.05",
        "--examples",
        "60",
        "--quiet",
    )
    said = robust(*words, "--wide").require(0, "mim-10 from another network", "upper bound")
    checkpoint = Checkpoint.read(source)
    zeros = {name: 0 * value for name, value in checkpoint.weights.items()}
    checkpoint.model_copy(update={"weights": zeros}).write(source)
    other = robust(*words).require(0)
    assert said.out != other.out
    for folder in Path("evals").iterdir():
        robust("verify", folder).require(0, "mim: verified")
    source.unlink()
    robust(*words).require(2, "source.pt: cannot be read")


def test_a_journal_of_another_evaluation_is_refused(
    robust: Robust, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: RunFolder
) -> None:
    journal = tmp_path / "evals" / stored.name / "evaluations" / "pgd.journal"
    write_json(
        journal / "fingerprint.json",
        {**read_json(stored / "evaluations" / "pgd.json")["fingerprint"], "code": "0" * 64},
    )
    monkeypatch.chdir(tmp_path)
    robust("eval", trained.best, *WORDS, "--quiet").require(2, "code: the journal has 000000000000...", "start over")
    assert [path.name for path in journal.iterdir()] == ["fingerprint.json"]


@pytest.mark.slow
def test_workers_give_the_same_numbers(
    robust: Robust, stored: Path, tmp_path: Path, trained: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    forked.fork_instead_of_spawning(monkeypatch)
    robust("eval", trained.best, *WORDS, "--quiet", "--workers", 2).require(0)
    (path,) = (tmp_path / "evals").iterdir()
    assert facts(path)[0] == facts(stored)[0]
    assert (
        read_json(path / "evaluations" / "pgd.json")["stages"][0]["entered"]
        == read_json(stored / "evaluations" / "pgd.json")["stages"][0]["entered"]
    )


@pytest.mark.slow
def test_more_workers_than_images_are_no_error(tmp_path: Path, trained: RunFolder) -> None:
    sessions = Sessions(tmp_path)
    words = ("--attack", "fgsm", "--examples", "1", "--workers", "2", "--quiet")
    assert sessions.run("eval", str(trained.best), *words) == 0, sessions.log.read_text()


@pytest.mark.slow
def test_a_worker_that_fails_is_an_error(stored: Path, tmp_path: Path, trained: RunFolder) -> None:
    journal = tmp_path / "evals" / stored.name / "evaluations" / "pgd.journal"
    write_json(journal / "fingerprint.json", {})
    sessions = Sessions(tmp_path)
    assert sessions.run("eval", str(trained.best), *WORDS, "--workers", "2") == 2
    said = sessions.log.read_text(encoding="utf-8")
    assert "a worker ended with exit code 2" in said
    assert "belongs to another evaluation" in said


def test_impossible_requests_are_refused_before_workers_start(robust: Robust, trained: RunFolder) -> None:
    said = robust("eval", trained.best, "--attack", "pgd", "--data", "nothing.npz", "--workers", 2)
    assert "worker" not in said.require(2, "nothing.npz").err


def tampered(stored: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stored, tmp_path / "copy"))


def test_what_was_stored_is_verified(robust: Robust, stored: Path, trained: RunFolder) -> None:
    robust("verify", stored).require(
        0, "pgd: verified: 60 clean predictions, counts and interval,", "adversarial images"
    )
    said = robust("verify", trained.path).require(0, "clean: verified", "could not be re-checked")
    assert "error" not in said.err


def test_missing_adversarial_examples_are_reported(robust: Robust, stored: Path, tmp_path: Path) -> None:
    folder = tampered(stored, tmp_path)
    (folder / "evaluations" / "pgd.adversarial.npz").unlink()
    robust("verify", folder).require(0, "no adversarial images were kept (--save-examples)")


def _line(change: Callable[[list[str]], list[str]], where: Callable[[list[str]], bool]) -> Callable[[Path], None]:
    """Change the first per-image line for which `where` holds."""

    def tamper(folder: Path) -> None:
        path = folder / "evaluations" / "pgd.csv"
        lines = [line.split(",") for line in path.read_text().splitlines()]
        row = next(number for number, line in enumerate(lines) if number and where(line))
        lines[row] = change(lines[row])
        path.write_text("".join(",".join(line) + "\n" for line in lines))

    return tamper


def _json(**changes: Any) -> Callable[[Path], None]:
    def tamper(folder: Path) -> None:
        write_json(folder / "evaluations" / "pgd.json", {**read_json(folder / "evaluations" / "pgd.json"), **changes})

    return tamper


def _attack(**changes: Any) -> Callable[[Path], None]:
    def tamper(folder: Path) -> None:
        parameters = read_json(folder / "evaluations" / "pgd.json")["parameters"]
        _json(parameters={**parameters, "attack": {**parameters["attack"], **changes}})(folder)

    return tamper


def _summary(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def tamper(folder: Path) -> None:
        results = read_json(folder / "results.json")
        change(results["evaluations"])
        write_json(folder / "results.json", results)

    return tamper


def _stage(**changes: Any) -> Callable[[Path], None]:
    def tamper(folder: Path) -> None:
        result = read_json(folder / "evaluations" / "pgd.json")
        write_json(folder / "evaluations" / "pgd.json", {**result, "stages": [{**result["stages"][0], **changes}]})

    return tamper


def _examples(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def tamper(folder: Path) -> None:
        with np.load(folder / "evaluations" / "pgd.adversarial.npz") as stored:
            arrays = dict(stored)
        kind = max(("steps", "halves", "floats"), key=lambda name: len(arrays[name]))
        arrays["kind"] = kind
        change(arrays)
        del arrays["kind"]
        np.savez(folder / "evaluations" / "pgd.adversarial.npz", **arrays)

    return tamper


def _zero(arrays: dict[str, Any]) -> None:
    arrays[arrays["kind"]][0] = 0


def _far(arrays: dict[str, Any]) -> None:
    arrays[arrays["kind"]][0] *= 3


def _drop(arrays: dict[str, Any]) -> None:
    kind = arrays["kind"]
    arrays[kind], arrays[f"{kind}_images"] = arrays[kind][1:], arrays[f"{kind}_images"][1:]


def _twice(arrays: dict[str, Any]) -> None:
    arrays[f"{arrays['kind']}_images"][1] = arrays[f"{arrays['kind']}_images"][0]


def _survives(line: list[str]) -> bool:
    return line[3] == ""


def _broken(line: list[str]) -> bool:
    return line[3] == "pgd"


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (_line(lambda line: [*line[:3], "", *line[4:]], _broken), "survivors: the per-image results and"),
        (_line(lambda line: [*line[:3], "pgd", *line[4:]], _survives), "broken images have none"),
        (_line(lambda line: [line[0], "9" if line[1] != "9" else "8", *line[2:]], _survives), "labels: 1 differ"),
        (_line(lambda line: [*line[:2], "9" if line[2] != "9" else "8", *line[3:]], _survives), "clean predictions: 1"),
        (_line(lambda line: [*line[:3], "magic", *line[4:]], _broken), "broken by 'magic', which is not a stage"),
        (_line(lambda line: ["999", *line[1:]], _survives), "the images are not numbered"),
        (_json(correct=59), "correct: the result says 59; its other keys give"),
        (_json(accuracy=0.99), "accuracy: the result says 0.99"),
        (_json(interval=[0.0, 1.0]), "interval: the result says"),
        (_json(survivors="1" * 60), "survivors: the per-image results and"),
        (_json(survivors="1" * 61), "images: the evaluation used"),
        (_json(stages=[]), "which is not a stage of the result"),
        (_json(eps="0.01"), "lie outside linf 0.01"),
        (_json(eps="0.1"), "threat: the result says linf 0.1, its fingerprint linf 0.05"),
        (_json(norm="l2"), "threat: the result says l2 0.05, its fingerprint linf 0.05"),
        (_json(fingerprint=None), "fingerprint: the result has none"),
        (_attack(steps=50), "evaluator: the result says attack {"),
        (_json(seed=7), "seed: the result says 7, its fingerprint 0"),
        (_json(eps_value=0.5), "eps_value: the result says 0.5; its other keys give 0.05"),
        (_json(verdict="SUSPECT"), "verdict: the result says SUSPECT"),
        (_json(suspicions=["gradients vanish"]), "verdict: the result says TRUSTED"),
        (_json(is_upper_bound=False), "is_upper_bound: the result says False"),
        (_json(forwards=60), "forwards: the result says 60"),
        (_json(gradients=1), "gradients: the result says 1;"),
        (_stage(gradients=1), "gradients: the result says"),
        (_stage(has_black_box=True), "is_upper_bound: the result says True"),
        (_line(lambda line: [*line[:4], line[1], *line[5:]], _broken), "prediction"),
        (_line(lambda line: [*line[:5], "-1", line[6]], _broken), "with largest margin -1"),
        (_line(lambda line: [*line[:5], "1", line[6]], _survives), "with largest margin 1"),
        (_line(lambda line: [*line[:5], "nan", line[6]], _survives), "with largest margin nan"),
        (_line(lambda line: [*line[:6], "0.5"], _broken), "size 0.5 where 0.05 is allowed"),
        (_line(lambda line: [*line[:6], "nan"], _broken), "size nan where 0.05 is allowed"),
        (_line(lambda line: [*line[:6], "0.01"], _survives), "size 0.01 where 0.05 is allowed"),
        (_summary(lambda found: found["pgd"].update(accuracy=0.99)), "results.json: differs from pgd.json"),
        (_examples(_zero), "adversarial examples: 1 do not fool the network"),
        (_examples(_far), "adversarial examples: 1 lie outside linf 0.05"),
        (_examples(_drop), "adversarial examples: 1 broken images have none"),
        (_examples(_twice), "adversarial examples: 1 images have more than one"),
    ],
)
def test_tampering_is_caught(
    robust: Robust, stored: Path, tmp_path: Path, tamper: Callable[[Path], None], message: str
) -> None:
    folder = tampered(stored, tmp_path)
    tamper(folder)
    robust("verify", folder).require(1, message)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_json(survivors=""), "survivors: found ''; expected a 0 or a 1 for every image"),
        (_json(norm="l3"), "norm: 'l3'"),
        (_json(eps="much"), "eps: found 'much'; expected a number"),
        (_json(stages=[{}]), "stages.0.name: found nothing; expected this key"),
        (_json(forwards="many"), "pgd.json: forwards: found 'many'; expected a valid integer"),
        (_json(evaluator="magic"), "magic"),
        (_json(parameters={"batch_size": 16}), "attack"),
        (_summary(lambda found: found.update(square=found["pgd"])), "square.json: cannot be read"),
    ],
)
def test_damaged_files_are_bad_input(
    robust: Robust, stored: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = tampered(stored, tmp_path)
    damage(folder)
    robust("verify", folder).require(2, message)


def test_another_checkpoint_is_caught(robust: Robust, stored: Path, tmp_path: Path, trained: RunFolder) -> None:
    checkpoint = Checkpoint.read(trained.best)
    weights = checkpoint.weights
    name = next(name for name, value in weights.items() if value.dtype == torch.float32 and value.dim() > 1)
    weights[name] = weights[name] * 1.001
    checkpoint.write(tmp_path / "other.pt")
    robust("verify", stored, "--checkpoint", tmp_path / "other.pt").require(1, "weights: the evaluation used")


def test_swapped_labels_in_the_data_are_caught(robust: Robust, tmp_path: Path, trained: RunFolder) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (40, 8, 8), dtype=np.uint8)
    labels = np.arange(40) % 10
    path = tmp_path / "images.npz"
    settings = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    np.savez(path, **settings)
    words = ("--attack", "pgd", "--examples", 40, "--data", path, "--store", tmp_path / "evals", "--quiet")
    robust("eval", trained.best, *words).require(0)
    (folder,) = (tmp_path / "evals").iterdir()
    robust("verify", folder).require(0)
    swapped = labels.copy()
    swapped[[3, 4]] = swapped[[4, 3]]
    np.savez(path, **{**settings, "y_test": swapped})
    robust("verify", folder).require(1, "images: the evaluation used", "labels: 2 differ from those of the data")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere",), "nowhere: no such file or folder"),
        ((".",), "found no spec.yaml and no results.json"),
    ],
)
def test_folders_without_evidence_are_refused(robust: Robust, tiny: Path, words: tuple[str, ...], message: str) -> None:
    robust("verify", *words).require(2, message)


def test_missing_files_are_named(robust: Robust, stored: Path, tmp_path: Path) -> None:
    folder = tampered(stored, tmp_path)
    (folder / "evaluations" / "pgd.csv").rename(folder / "evaluations" / "other.csv")
    robust("verify", folder).require(2, "other.json: cannot be read")
    (folder / "evaluations" / "other.csv").unlink()
    robust("verify", folder).require(0, "pgd: not checked: per-image results and attacks: there is no pgd.csv")


def test_survivors_that_are_wrong_when_clean_are_found_without_per_image_results(
    robust: Robust, stored: Path, tmp_path: Path
) -> None:
    folder = tampered(stored, tmp_path)
    (folder / "evaluations" / "pgd.csv").unlink()
    for path in (folder / "evaluations" / "pgd.json", folder / "results.json"):
        path.write_text(re.sub(r'"survivors": "[01]+"', f'"survivors": "{"1" * 60}"', path.read_text()))
    robust("verify", folder).require(1, "do not fit the clean predictions of this network")


def test_a_run_without_its_weights_is_checked_as_far_as_possible(
    robust: Robust, trained: RunFolder, tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("results.json", "provenance.json"):
        shutil.copy(trained.path / name, alone / name)
    for place in (alone, alone / "results.json"):
        said = robust("verify", place).require(0, "pgd: verified: counts, accuracy and interval")
        said.require(0, "pgd: not checked: weights, images", "there is no checkpoints/best.pt")
    path = alone / "results.json"
    path.write_text(re.sub(r'"correct": \d+', '"correct": 59', path.read_text()))
    robust("verify", alone).require(1, "correct: the result says 59; its other keys give")


def test_a_run_whose_weights_were_removed_still_has_its_digest_chain(
    robust: Robust, trained: RunFolder, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    shutil.copytree(trained.path, run.path)
    run.best.unlink()
    robust("verify", run.path).require(0, "checkpoints/best.pt (missing)", "in short: the stored numbers agree")
    run.results.write_text(run.results.read_text().replace('"seed": 0', '"seed": 1'))
    robust("verify", run.path).require(1, "digest chain: settings was changed")


def test_only_the_evaluated_images_are_read(robust: Robust, stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int | None] = []
    usual = Data.images
    monkeypatch.setattr(Data, "images", lambda *given: asked.append(given[2]) or usual(*given))
    robust("verify", stored).require(0, "in short: weights and images give the stored numbers")
    assert asked
    assert max(count or 10**9 for count in asked) <= 64


def test_results_say_what_was_evaluated(stored: Path) -> None:
    results = json.loads((stored / "results.json").read_text())
    assert results["subject"]["text"].endswith("best.pt")
    assert set(results["evaluations"]["pgd"]["fingerprint"]) == {
        "weights", "network", "images", "threat", "evaluator", "seed", "code",
    }  # fmt: skip


NOISY = """
import torch
from sklearn.datasets import load_digits


class Noisy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        pixels, labels = load_digits(return_X_y=True)
        means = torch.stack([torch.tensor(pixels[labels == k]).mean(0) for k in range(10)]).float() / 16
        self.register_buffer("means", means)

    def forward(self, x):
        noisy = x.flatten(1) + 0.1 * torch.randn_like(x.flatten(1))
        return 20 * (noisy @ self.means.T - self.means.square().sum(1) / 2)


def build():
    return Noisy()
"""


@pytest.mark.slow
def test_a_network_that_draws_noise_is_verified_as_far_as_that_goes(robust: Robust, tmp_path: Path) -> None:
    (tmp_path / "noisy.py").write_text(NOISY)
    words = ("--model", f"{tmp_path / 'noisy.py'}:build", "--data", "digits", "--eps", "0.1", "--norm", "linf")
    words += ("--attack", "autoattack", "--version", "rand", "--examples", "40", "--save-examples")
    robust("eval", *words, "--store", tmp_path / "evals", "--quiet").require(0, "SUSPECT")
    (folder,) = (tmp_path / "evals").iterdir()
    assert 2 < read_json(folder / "evaluations" / "autoattack.json")["correct"] < 38
    robust("verify", folder).require(0, "20% of the images may differ by chance")
    path = folder / "evaluations" / "autoattack.adversarial.npz"
    with np.load(path) as stored:
        arrays = {
            name: np.zeros_like(value) if name in ("steps", "halves") else value for name, value in stored.items()
        }
    np.savez(path, **arrays)
    robust("verify", folder).require(1, "do not fool the network")


def test_stages_of_older_versions_are_verified(robust: Robust, stored: Path, tmp_path: Path) -> None:
    folder = tampered(stored, tmp_path)
    path = folder / "evaluations" / "pgd.json"
    result = read_json(path)
    result["stages"] = [
        {key: stage[key] for key in stage if key not in ("threat", "sampled")} for stage in result["stages"]
    ]
    write_json(path, result)
    _summary(lambda found: found.update(pgd=result))(folder)
    robust("verify", folder).require(1, "digest chain: evaluations/pgd.json was changed")
    summary = read_json(folder / "results.json")
    del summary["chain"]
    robust("verify", folder).require(1)
    write_json(folder / "results.json", {**summary, "schema": 1})
    robust("verify", folder).require(0, "pgd: verified", "results of schema 1 have no digest chain")


@pytest.mark.slow
def test_every_adversarial_example_of_a_union_is_measured_in_its_own_threat(robust: Robust, tmp_path: Path) -> None:
    robust("train", "smoke/multi_norm", "--quiet").require(0)
    (run,) = Path("runs").glob("*/*")
    robust("verify", run).require(0, "l2: verified", "union: verified")
    robust("eval", run / "checkpoints" / "best.pt", "--attack", "union", "--save-examples", "--quiet").require(0)
    (folder,) = Path("evals").iterdir()
    robust("verify", folder).require(0, "union: verified")
    path = folder / "evaluations" / "union.json"
    stages = read_json(path)["stages"]
    broken = [stage["broken"] for stage in stages]
    assert min(broken) > 0, "every threat is to break somebody"
    write_json(path, {**read_json(path), "stages": [{**stage, "threat": None} for stage in stages]})
    robust("verify", folder).require(1, "adversarial examples: ", " lie outside linf 0.1 or the pixel box")


def test_progress_goes_to_the_log_unless_it_is_quiet(robust: Robust, trained: RunFolder) -> None:
    said = robust("eval", trained.best, "--attack", "pgd", "--steps", "2", "--examples", "30").require(0)
    (line,) = (line for line in said.err.splitlines() if line.startswith("evaluating pgd: pgd: "))
    found = re.match(r"evaluating pgd: pgd: (\d+) of \1 images, (\d+) broken, (\d+) survive, .* images/s$", line)
    assert found
    assert int(found[1]) == int(found[2]) + int(found[3])
    quiet = robust("eval", trained.best, "--attack", "pgd", "--steps", "2", "--examples", "30", "--fresh", "-q")
    assert quiet.require(0).err == ""


def test_examples_that_were_written_out_break_the_same_images(robust: Robust, trained: RunFolder) -> None:
    words = ("--attack", "pgd", "--steps", "4", "--examples", "40", "-q")
    robust("eval", trained.best, *words, "--save-examples", "--out", "pgd.json").require(0)
    (folder,) = Path("evals").iterdir()
    robust("show-examples", folder, "--out", "given.npz").require(0)
    said = robust("eval", trained.best, "--attack-from", "given.npz", "--examples", "40", "-q", "--out", "from.json")
    said.require(0, "no example is given, so that the clean image is counted")
    made, given = (read_json(Path(name))["evaluations"] for name in ("pgd.json", "from.json"))
    assert given["from_file"]["survivors"] == made["pgd"]["survivors"]
    assert given["from_file"]["verdict"] == made["pgd"]["verdict"]
    # At half the radius, some examples lie outside.
    out = json.loads(
        robust("eval", trained.best, "--attack-from", "given.npz", "--eps", "0.05", "--examples", "40", "--json").out
    )
    (reason,) = (text for text in out["evaluations"]["from_file"]["suspicions"] if "outside the threat set" in text)
    assert re.search(r"not counted: \d+ images \(\d+, ", reason)
    robust("eval", trained.best, "--attack-from", "x.npz", "--attack", "pgd").require(2, "remove one")
    robust("eval", trained.best, "--attack-from", "x.npz").require(2, "x.npz: cannot be read")
