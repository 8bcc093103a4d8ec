"""`robust eval` with several models and attacks: tables, transfer matrices, equal budgets; two attacks compared."""

import json
from pathlib import Path

import pytest
import torch
from shell import TINY, Robust

from robustcli.cli.progress import Screen
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.checkpoint import Checkpoint
from robustcli.store.files import read_json
from robustcli.store.runs import RunFolder
from robustcli.workflows.train import run_experiment

WORDS = ("--steps", 3, "--examples", 40, "-q")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with another seed and more epochs."""
    folder = tmp_path_factory.mktemp("other")
    (folder / "tiny.yaml").write_text(TINY, encoding="utf-8")
    spec = ExperimentSpec.read(folder / "tiny.yaml", ["seed=1", "train.epochs=4", "data.train_size=400"])
    return run_experiment(spec, folder / "runs", Screen(is_quiet=True))


@pytest.mark.slow
def test_models_and_attacks_give_a_table_and_are_stored_one_by_one(
    robust: Robust, trained: RunFolder, other: RunFolder
) -> None:
    said = robust("eval", trained.best, other.path, "--attack", "pgd,fgsm,clean", "--examples", 40, "-q", "--wide")
    lines = said.require(0).out.splitlines()
    assert lines[0].split() == ["model", "threat", "clean", "%", "pgd", "%", "fgsm", "%"]
    for model in (trained.best, other.path):
        (claim,) = (line for line in lines if line.startswith(f"{model}: "))
        assert "pgd" in claim
        assert "p = " in claim
    # Both models, each with three evaluations.
    stored = sorted(Path("evals").glob("*/results.json"))
    assert len(stored) == 6
    found = json.loads(robust("eval", trained.best, other.path, "--attack", "pgd,fgsm", "--examples", 40, "--json").out)
    assert [(cell["model"], cell["attack"], cell["source"]) for cell in found] == [
        (str(model), attack, None) for model in (trained.best, other.path) for attack in ("pgd", "fgsm")
    ]
    for cell in found:
        assert cell["results"] == read_json(Path(cell["folder"]) / "results.json")
        (evaluation,) = cell["results"]["evaluations"].values()
        assert f"{100 * evaluation['accuracy']:.1f} [" in said.out
        assert f"stored in {cell['folder']}" in said.out
    assert len(list(Path("evals").glob("*/results.json"))) == 6


def test_attacks_under_different_threat_models_are_shown_and_not_compared(robust: Robust, trained: RunFolder) -> None:
    said = robust("eval", trained.best, "--attack", "fgsm,corruptions", "--examples", 20, "-q").require(0)
    assert "fgsm and corruptions are not compared, because their threat models differ" in said.out
    assert "stored in" in said.out


def test_everything_is_checked_before_anything_is_attacked(robust: Robust, trained: RunFolder) -> None:
    robust("eval", trained.best, "nowhere.pt", "--attack", "pgd", *WORDS).require(2, "nowhere.pt")
    robust("eval", trained.best, "--attack", "pgd,fgsmm", "-q").require(2, "did you mean 'fgsm'?")
    robust("eval", trained.best, "--attack", "pgd,fgsm", "--out", "x.json").require(
        2, "--out: holds the results of one"
    )
    robust("eval", trained.best, "--attack", "pgd", "--transfer").require(2, "--transfer: needs at least two models")
    robust("diagnose", trained.best, trained.last).require(2, "found a second model")
    assert not Path("evals").exists()


@pytest.mark.slow
def test_a_transfer_matrix_shows_every_model_the_examples_of_every_other(
    robust: Robust, trained: RunFolder, other: RunFolder
) -> None:
    words = ("eval", trained.path, other.path, "--attack", "pgd", "--transfer", *WORDS)
    said = robust(*words, "--budget", "forwards=4").require(0)
    assert f"{other.path} on examples of {trained.path}, pgd: steps" in said.out
    said = robust(*words).require(0)
    assert "pgd: robust % of each model on examples made on the model of the row" in said.out
    cells = json.loads(robust(*words, "--json").require(0).out)
    names = [str(trained.path), str(other.path)]
    assert [(cell["source"], cell["model"]) for cell in cells] == [(a, b) for a in names for b in names]
    evaluators = [next(iter(cell["results"]["evaluations"].values()))["evaluator"] for cell in cells]
    assert evaluators == ["attack", "transfer_attack", "transfer_attack", "attack"]
    accuracies = [next(iter(cell["results"]["evaluations"].values()))["correct"] for cell in cells]
    # Examples made on the other network are weaker than those made on the network itself.
    assert accuracies[0] <= accuracies[2]
    assert accuracies[3] <= accuracies[1]


@pytest.mark.slow
def test_weights_of_an_architecture_make_examples_for_each_other(
    robust: Robust, trained: RunFolder, other: RunFolder
) -> None:
    files = ("a.pt", "b.pt")
    for name, run in zip(files, (trained, other), strict=True):
        checkpoint = Checkpoint.read(run.best)
        inside = {key: value for key, value in checkpoint.weights.items() if key.startswith("body.")}
        torch.save(inside, name)
    normalization = ("--mean", checkpoint.mean[0], "--std", checkpoint.std[0])
    settings = ("--architecture", "small_cnn", "architecture.width=4", "architecture.hidden=16")
    words = ("eval", *files, *settings, "--data", "digits", "--norm", "linf", "--eps", 0.1, "--attack", "pgd", *WORDS)
    robust(*words, "--transfer").require(
        2, "--transfer: nothing says which normalization a.pt", "give --mean and --std"
    )
    assert not Path("evals").exists()
    cells = json.loads(robust(*words, "--transfer", *normalization, "--json").require(0).out)
    assert [(cell["source"], cell["model"]) for cell in cells] == [(a, b) for a in files for b in files]
    (crafted,) = cells[1]["results"]["evaluations"].values()
    given = {key: crafted["parameters"][key] for key in ("source", "architecture", "mean", "std")}
    numbers = {"mean": checkpoint.mean, "std": checkpoint.std}
    assert given == {"source": "a.pt", "architecture": "small_cnn width=4 hidden=16", **numbers}
    # Examples made on the other network are weaker than those made on the network itself.
    correct = [next(iter(cell["results"]["evaluations"].values()))["correct"] for cell in cells]
    assert correct[0] <= correct[2]
    assert correct[3] <= correct[1]


@pytest.mark.parametrize(
    ("attack", "budget", "length"),
    [
        ("pgd", "forwards=40", {"steps": 38}),
        ("pgd", "gradients=7", {"steps": 7}),
        ("square", "forwards=30", None),
        ("apgd", "passes=50", None),
    ],
)
def test_a_budget_sets_the_steps_and_is_kept(
    robust: Robust, trained: RunFolder, attack: str, budget: str, length: dict[str, int] | None
) -> None:
    words = ("--attack", attack, "--budget", budget, "--eps", "1/1000", "--examples", 60, "-q", "--json")
    found = json.loads(robust("eval", trained.best, *words).require(0).out)["evaluations"][attack]
    if length is not None:
        assert found["parameters"]["attack"] | length == found["parameters"]["attack"]
    unit, _, limit = budget.partition("=")
    (stage,) = found["stages"]
    spent = {"forwards": stage["forwards"], "gradients": stage["gradients"]}
    spent["passes"] = sum(spent.values())
    # No image breaks, so no image stops early; one more step of at most two passes would exceed the budget.
    assert found["correct"] == stage["entered"] > 0
    # Square skips the pass of proposals that change nothing, and PGD ends where its points repeat.
    least = {"square": 0.8 * int(limit), "pgd": 0}.get(attack, int(limit) - 2)
    assert least < spent[unit] / stage["entered"] <= int(limit)


def test_a_budget_that_cannot_be_kept_is_refused(robust: Robust, trained: RunFolder) -> None:
    robust("eval", trained.best, "--attack", "autoattack", "--budget", "forwards=9").require(
        2, "has no number of steps"
    )
    # Nothing is attacked if another attack of the table has no number of steps.
    robust("eval", trained.best, "--attack", "pgd,apgd-t", "--budget", "forwards=9").require(
        2, "'apgd-t' has no number of steps"
    )
    assert not list(Path("evals").rglob("*.json"))
    robust("eval", trained.best, "--attack", "pgd", "--budget", "forwards=1").require(
        2, "one of the steps of 'pgd' takes"
    )
    robust("eval", trained.best, "--attack", "square", "--budget", "gradients=9").require(2, "uses no gradients")
    robust("eval", trained.best, "--attack", "pgd", "--budget", "9").require(2, "--budget: found '9'; expected")


def test_two_attacks_on_one_network_are_compared(robust: Robust, trained: RunFolder) -> None:
    for attack in ("pgd", "fgsm"):
        words = ("--attack", attack, "--examples", 40, "--eps", 0.1, "-q", "--out", f"{attack}.json")
        robust("eval", trained.best, *words).require(0)
    said = robust("compare", "pgd.json", "fgsm.json").require(0, "A and B are one network")
    assert "pgd:fgsm: " in said.out
    pair = json.loads(robust("compare", "pgd.json", "fgsm.json", "--json").out)["comparisons"]["pgd:fgsm"]
    assert pair["is_same_network"] is True
    assert pair["warnings"][0].startswith("evaluated differently (attack.name pgd in A, fgsm in B")
    # Within one result, and by name.
    said = robust("compare", trained.path, "--key", "pgd:pgd").require(0, "pgd:pgd: no difference can be claimed")
    robust("compare", trained.path).require(2, "found one result; expected another one, or --key")
    robust("compare", trained.path, "--key", "pgd:pdg").require(2, "has no evaluation 'pdg'; did you mean 'pgd'?")
