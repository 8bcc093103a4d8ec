"""`robust export robustbench` checks what it writes in a new process and writes nothing on failure."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import forked
import numpy as np
import pytest
import torch
import yaml
from shell import Robust, environment
from sklearn.datasets import load_digits

from robustcli.architectures import ImageShape, Network
from robustcli.cli.progress import Screen
from robustcli.errors import RobustCliError
from robustcli.models.build import network_of
from robustcli.store.checkpoint import Checkpoint, NetworkCheckpoint
from robustcli.store.files import read_json, write_json
from robustcli.store.results import ModelRequest
from robustcli.store.runs import RunFolder
from robustcli.workflows.evaluate import Request, assess
from robustcli.workflows.export import rebuild, recheck, robustbench

META = """\
link: https://example.org/paper
name: "Digits in a box"
authors: "Ada Émile, Second Author"
venue: "arXiv, Jan 2026"
additional_data: false
reported: ""
"""
IMAGES = 16


@pytest.fixture(scope="session")
def place(well_trained: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, a few test images, and the user's metadata of the paper."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(well_trained.path, folder / "run")
    source = load_digits()
    pixels = (source.images * (255 / 16)).round().astype(np.uint8)
    test = {"x_test": pixels[-IMAGES:], "y_test": source.target[-IMAGES:]}
    np.savez(folder / "images.npz", x_train=pixels[:40], y_train=source.target[:40], **test)
    (folder / "meta.yaml").write_text(META + "dataset: few-digits\n", encoding="utf-8")
    (folder / "digits.yaml").write_text(META, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def stored(place: Path) -> Path:
    """AutoAttack by the rules of the leaderboard on all images, with adversarial examples."""
    subject = ModelRequest(text=str(RunFolder(place / "run").best), data=str(place / "images.npz"))
    request = Request(
        subject=subject, attack="autoattack", options={}, eps="30/255", store=place / "evals", save_examples=True
    )
    found = assess(request, Screen(is_quiet=True))
    assert found is not None
    path = found[1]
    result = read_json(path / "evaluations" / "autoattack.json")
    clean = sum(
        line.split(",")[3] != "clean" for line in (path / "evaluations" / "autoattack.csv").read_text().splitlines()[1:]
    )
    assert result["correct"] < clean < IMAGES, "the two accuracies of the card are to differ"
    return path


@pytest.fixture
def real_process() -> None:
    """For tests of the checking process itself."""


@pytest.fixture(autouse=True)
def checked_in_a_fork(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the process that checks an export, with torch already imported, which saves seconds."""

    def run(command: list[str], *, input: str, **_: Any) -> subprocess.CompletedProcess[str]:
        return forked.python(command[-1], cwd=Path.cwd(), text=input)

    if "real_process" not in request.fixturenames:
        monkeypatch.setattr(recheck, "subprocess", SimpleNamespace(run=run))


@pytest.fixture
def copy(stored: Path, tmp_path: Path) -> Path:
    """An evaluation that a test may change."""
    return Path(shutil.copytree(stored, tmp_path / "copy"))


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def nothing_left(folder: Path, *names: str) -> bool:
    return {path.name for path in folder.iterdir()} == set(names)


@pytest.mark.slow
@pytest.mark.usefixtures("real_process")
def test_a_card_states_the_numbers_of_the_evidence(robust: Robust, place: Path, stored: Path, tmp_path: Path) -> None:
    said = robust("export", "robustbench", stored, "out", "--metadata", place / "meta.yaml", "--device", "cpu")
    said.require(0, f"checked in a new process: {IMAGES} clean predictions", "card: out/model_info/")
    out = tmp_path / "out"
    card = "model_info/few-digits/Linf/Emile2026Digits.json"
    assert files(out) == {
        card, "weights.pt", "network.yaml", "model.py", "log.txt",
        "autoattack.json", "autoattack.csv", "autoattack.adversarial.npz",
    }  # fmt: skip
    ledger = [line.split(",") for line in (out / "autoattack.csv").read_text().splitlines()[1:]]
    right, alive = (sum(is_so) for is_so in zip(*((row[1] == row[2], row[3] == "") for row in ledger), strict=True))
    contents = json.loads((out / card).read_text(encoding="utf-8"))
    assert list(contents) == [
        "link", "name", "authors", "additional_data", "number_forward_passes", "dataset", "venue", "architecture",
        "eps", "clean_acc", "reported", "autoattack_acc", "footnote", "unreliable",
    ]  # fmt: skip
    assert contents["clean_acc"] == f"{100 * right / IMAGES:.2f}"
    assert contents["autoattack_acc"] == f"{100 * alive / IMAGES:.2f}"
    assert (contents["eps"], contents["architecture"]) == ("30/255", "small_cnn")
    assert contents["authors"] == "Ada Émile, Second Author"
    assert contents["unreliable"] is (read_json(stored / "evaluations" / "autoattack.json")["verdict"] == "SUSPECT")
    assert (out / card).read_text(encoding="utf-8").startswith('{\n  "link"')
    log = (out / "log.txt").read_text()
    assert "few-digits, read by npz: the first 16 of" in log
    assert "new process: 16 clean predictions" in log
    found = yaml.safe_load(log)
    assert found["sessions"][0]["versions"]["torch"]
    assert found["evaluations"]["autoattack"]["stages"][-1]["name"] == "square"


@pytest.mark.slow
def test_the_loader_gives_the_network_in_a_process_of_its_own(
    robust: Robust, place: Path, stored: Path, tmp_path: Path
) -> None:
    robust("export", "robustbench", stored, "out", "--metadata", place / "meta.yaml").require(0)
    # Moved, and read from elsewhere.
    (tmp_path / "out").rename(tmp_path / "moved")
    code = (
        "import torch\nfrom model import build\nnetwork = build()\nassert not network.training\n"
        "x = torch.linspace(0, 1, 128).reshape(2, 1, 8, 8)\n"
        "with torch.no_grad():\n    print(network(x).double().sum().item())\n"
    )
    env = environment({"PYTHONPATH": os.pathsep.join([str(tmp_path / "moved"), environment()["PYTHONPATH"]])})
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    best = RunFolder(place / "run").best
    _, network = network_of(NetworkCheckpoint.read(best), torch.device("cpu"), best)
    with torch.no_grad():
        expected = network(torch.linspace(0, 1, 128).reshape(2, 1, 8, 8)).double().sum().item()
    assert float(done.stdout) == pytest.approx(expected, abs=1e-4)
    weights = torch.load(tmp_path / "moved" / "weights.pt", weights_only=True)
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert list(weights) == list(network.state_dict())


@pytest.mark.slow
def test_a_run_is_exported_and_what_it_does_not_entitle_to_is_left_out(
    robust: Robust, place: Path, tmp_path: Path
) -> None:
    words = ("export", "robustbench", place / "run", "out", "--metadata", place / "digits.yaml", "--evaluation", "pgd")
    robust(*words).require(
        2, "clean_acc: images: the first 60 of 360", "autoattack_acc: evaluator: attack; expected autoattack"
    )
    assert nothing_left(tmp_path)
    said = robust(*words, "--partial")
    said.require(0, "left out: clean_acc: images", "left out: autoattack_acc: images")
    card = read_json(tmp_path / "out" / "model_info" / "digits" / "Linf" / "Emile2026Digits.json")
    assert {"clean_acc", "autoattack_acc"}.isdisjoint(card)
    assert card["eps"] == "0.1"
    log = yaml.safe_load((tmp_path / "out" / "log.txt").read_text())
    assert log["left out of the card"]["autoattack_acc"][0].startswith("images: the first 60 of 360")
    assert log["selection"] == {"by": "robust", "images": "val"}


@pytest.mark.slow
def test_weights_of_another_program_are_exported_with_their_architecture(
    robust: Robust, place: Path, tmp_path: Path
) -> None:
    weights = Checkpoint.read(RunFolder(place / "run").best).weights
    body = {name.removeprefix("body."): value for name, value in weights.items() if name.startswith("body.")}
    torch.save(body, "weights.pt")
    words = ("--architecture", "small_cnn", "architecture.width=4", "architecture.hidden=16", "--mean", 0.3)
    threat = ("--std", 0.5, "--norm", "l2", "--eps", 0.5, "--attack", "pgd", "--data", place / "images.npz")
    robust("eval", "weights.pt", *words, *threat, "--quiet").require(0)
    (folder,) = Path("evals").iterdir()
    robust("export", "robustbench", folder, "out", "--metadata", place / "meta.yaml", "--evaluation", "pgd",
           "--partial").require(0)  # fmt: skip
    (path,) = (tmp_path / "out").glob("model_info/few-digits/L2/*.json")
    # All images were evaluated, so clean accuracy may be claimed though robust accuracy may not.
    assert ("clean_acc" in read_json(path), "autoattack_acc" in read_json(path)) == (True, False)
    network = rebuild.rebuild(tmp_path / "out")
    assert network.normalize.mean.flatten().tolist() == pytest.approx([0.3])
    Path("weights.pt").rename("elsewhere.pt")
    more = ("--metadata", place / "meta.yaml", "--evaluation", "pgd", "--partial")
    robust("export", "robustbench", folder, "again", *more).require(2, "weights.pt")
    robust("export", "robustbench", folder, "again", *more, "--checkpoint", "elsewhere.pt").require(0)


@pytest.mark.slow
def test_a_transformation_before_the_network_is_exported(robust: Robust, place: Path, tmp_path: Path) -> None:
    how = ("preprocess=bit_depth", "preprocess.bits=3", "--norm", "linf", "--eps", 0.1, "--attack", "pgd")
    robust("eval", place / "run", *how, "--data", place / "images.npz", "--examples", IMAGES, "--quiet").require(0)
    (folder,) = Path("evals").iterdir()
    robust("export", "robustbench", folder, "out", "--metadata", place / "meta.yaml", "--evaluation", "pgd",
           "--partial").require(0)  # fmt: skip
    network = rebuild.rebuild(tmp_path / "out")
    coarse = torch.full((1, 1, 8, 8), 0.5)
    assert torch.equal(network(coarse), network(coarse + 0.01))


@pytest.mark.slow
def test_a_network_with_code_of_its_own_is_refused(robust: Robust, place: Path) -> None:
    code = "from torch import nn\n\n\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    Path("nets.py").write_text(code)
    words = ("--model", "nets.py:build", "--norm", "linf", "--eps", "1/255", "--attack", "clean", "--mean", 0)
    robust("eval", *words, "--std", 1, "--data", place / "images.npz", "--quiet").require(0)
    (folder,) = Path("evals").iterdir()
    robust("export", "robustbench", folder, "out", "--metadata", place / "meta.yaml", "--evaluation", "clean").require(
        2, "has its own code, which an export cannot contain"
    )


def _result(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "evaluations" / "autoattack.json"
        write_json(path, {**read_json(path), **changes})

    return change


def _settings(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        _result(parameters={**read_json(folder / "evaluations" / "autoattack.json")["parameters"], **changes})(folder)

    return change


def _ledger(folder: Path) -> None:
    """Another clean prediction of the first survivor."""
    path = folder / "evaluations" / "autoattack.csv"
    rows = [line.split(",") for line in path.read_text().splitlines()]
    row = next(row for row in rows[1:] if row[3] == "")
    row[1] = row[2] = "9" if row[2] != "9" else "8"
    path.write_text("".join(",".join(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_settings(version="plus"), "autoattack_acc: version: plus"),
        (_settings(precision="fast"), "autoattack_acc: precision: fast"),
        (_settings(sample_first=3), "autoattack_acc: sample_first: 3"),
        (_result(stages=[]), "autoattack_acc: attacks: none"),
        (_result(eps="0.5"), "autoattack_acc: threat: linf 0.5; the card is about linf 2/17"),
        (_result(survivors="1" * 5), "autoattack_acc: images: the first 5 of 16"),
        # The checking process finds what the checks above cannot.
        (_result(correct=IMAGES), f"correct: the result says {IMAGES}"),
        (_ledger, "clean predictions: 1 differ from those of this network"),
        (lambda folder: (folder / "evaluations" / "autoattack.csv").unlink(), "autoattack.csv: no such file"),
    ],
)
@pytest.mark.slow
def test_evidence_that_is_not_enough_is_refused(
    robust: Robust, place: Path, copy: Path, tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    change(copy)
    robust("export", "robustbench", copy, "out", "--metadata", place / "meta.yaml").require(2, message)
    assert nothing_left(tmp_path, "copy")


@pytest.mark.slow
def test_weights_that_changed_on_the_way_are_caught(
    robust: Robust, place: Path, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = rebuild.keep

    def scaled(folder: Path, network: Network, *rest: Any) -> None:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(-1)
        keep(folder, network, *rest)

    monkeypatch.setattr(rebuild, "keep", scaled)
    robust("export", "robustbench", stored, "out", "--metadata", place / "meta.yaml").require(
        2,
        "the exported network is not the one that was evaluated",
        "weights: the evaluation used",
        "clean predictions",
    )
    assert nothing_left(tmp_path)


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        ("\nraise RuntimeError('no such thing')\n", "cannot be loaded in a new process: RuntimeError: no such thing"),
        ("\nkept = build\nbuild = lambda: kept().train()\n", "the network is in train mode"),
    ],
)
@pytest.mark.slow
def test_a_loader_that_does_not_load_is_caught(
    robust: Robust,
    place: Path,
    stored: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ending: str,
    message: str,
) -> None:
    loader = robustbench._loader
    monkeypatch.setattr(robustbench, "_loader", lambda *words: loader(*words) + ending)
    robust("export", "robustbench", stored, "out", "--metadata", place / "meta.yaml").require(2, message)
    assert nothing_left(tmp_path)


@pytest.mark.slow
def test_only_a_new_or_an_empty_folder_is_written(robust: Robust, place: Path, stored: Path, tmp_path: Path) -> None:
    words = ("export", "robustbench", stored, "out", "--metadata", place / "meta.yaml")
    out = tmp_path / "out"
    out.write_text("mine")
    robust(*words).require(2, "out: found a file; expected a new or an empty folder")
    assert out.read_text() == "mine"
    out.unlink()
    out.mkdir()
    (out / "mine").touch()
    robust(*words).require(2, "out: found a folder that is not empty")
    assert files(out) == {"mine"}
    (out / "mine").unlink()
    (tmp_path / "out.writing").mkdir()
    robust(*words).require(2, "out.writing: cannot be created", "delete it if an export left it")
    (tmp_path / "out.writing").rmdir()
    robust(*words).require(0)
    assert nothing_left(tmp_path, "out")


@pytest.mark.slow
def test_options_are_checked_before_anything_is_written(
    robust: Robust, place: Path, stored: Path, tmp_path: Path
) -> None:
    robust("export", "robustbench", stored, "out").require(2, "missing link, name, authors", 'venue: "arXiv')
    meta = ("--metadata", place / "meta.yaml")
    robust("export", "robustbench", tmp_path, "out", *meta).require(2, "found no spec.yaml and no results.json")
    robust("export", "robustbench", stored, "out", *meta, "--evaluation", "autoatack").require(
        2, "has no evaluation 'autoatack'; did you mean 'autoattack'?"
    )
    robust("export", "robustbench", stored, "out", "--metadata", place / "digits.yaml").require(
        2, "dataset: is missing; npz does not name the data set"
    )
    robust("export", "robustbench", stored, "out", "--metadata", "nowhere.yaml").require(
        2, "nowhere.yaml: no such file"
    )
    assert nothing_left(tmp_path)


def test_the_current_folder_is_not_replaced(robust: Robust, tmp_path: Path) -> None:
    robust("export", "robustbench", "run", ".").require(2, ".: is the current folder")


def test_an_unfinished_run_is_refused(robust: Robust, place: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(place / "run", tmp_path / "run"))
    (run / "results.json").unlink()
    robust("export", "robustbench", run, "out", "--metadata", place / "digits.yaml", "--evaluation", "pgd").require(
        2, "run: is unfinished, 5 epochs; finish it with --resume"
    )


def test_a_spec_that_was_changed_by_hand_gives_no_network(place: Path, tmp_path: Path) -> None:
    best = RunFolder(place / "run").best
    checkpoint = NetworkCheckpoint.read(best)
    spec, network = network_of(checkpoint, torch.device("cpu"), best)
    rebuild.keep(tmp_path, network, spec.architecture, ImageShape(*checkpoint.shape))
    assert not rebuild.rebuild(tmp_path).training
    path = tmp_path / "network.yaml"
    text = path.read_text()
    for old, new, message in (
        ("hidden: 16", "hidden: 17", "does not fit the network in"),
        ("hidden: 16", "hiden: 16", "did you mean 'hidden'"),
        ("shape:", "form:", "expected only the keys architecture and shape"),
        ("channels: 1", "channels: one", "shape.channels"),
    ):
        path.write_text(text.replace(old, new))
        with pytest.raises(RobustCliError, match=message):
            rebuild.rebuild(tmp_path)
