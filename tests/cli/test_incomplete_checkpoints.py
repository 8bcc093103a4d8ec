"""Readable checkpoints that are incomplete or inconsistent."""

import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from shell import Robust

from robustcli.store.runs import RunFolder

Path_ = tuple[str, ...]


def changed(contents: dict[str, Any], path: Path_, change: Callable[[dict[str, Any], str], object]) -> dict[str, Any]:
    contents = deepcopy(contents)
    inner = contents
    for key in path[:-1]:
        inner = inner[key]
    change(inner, path[-1])
    return contents


def paths_of(contents: dict[str, Any]) -> list[Path_]:
    inner = [(key, one) for key in ("training", "check", "threat") for one in contents[key]]
    return [*((key,) for key in contents if key not in ("format", "robustcli")), *inner, ("weights", "body.0.weight")]


@pytest.mark.parametrize(
    "value",
    [
        "lacking", "text", None, {}, torch.ones(2),
        *(pytest.param(value, marks=pytest.mark.full) for value in ([], 3)),
    ],
    ids=repr,
)  # fmt: skip
@pytest.mark.slow
def test_every_part_of_a_checkpoint_may_lack_or_be_something_else(
    robust: Robust, trained: RunFolder, tmp_path: Path, value: Any
) -> None:
    contents = torch.load(trained.best, weights_only=True)
    refused = set()
    for path in paths_of(contents):

        def change(inner: dict[str, Any], key: str) -> None:
            inner.pop(key) if isinstance(value, str) and value == "lacking" else inner.update({key: value})

        torch.save(changed(contents, path, change), tmp_path / "part.pt")
        said = robust("eval", tmp_path / "part.pt", "--attack", "clean", "--examples", 20, "--quiet", "--fresh")
        assert said.code in (0, 2), (path, said)
        assert "Traceback" not in said.err
        if said.code == 2:
            refused.add(path)
            assert "part.pt" in said.err
            assert path[-1] in said.err or "spec" in said.err or path == ("weights",)
    assert {("spec",), ("shape",), ("mean",), ("std",), ("check",)} - refused <= (
        {("check",)} if value == {} else set()
    )


@pytest.mark.parametrize("key", ["training", "updates", "is_over", "network", "optimizer", "step", "average", "means"])
def test_resuming_from_an_incomplete_checkpoint_names_what_is_missing(
    robust: Robust, trained: RunFolder, tiny: Path, key: str
) -> None:
    run = RunFolder(Path("runs") / trained.path.parent.name / trained.path.name)
    shutil.copytree(trained.path, run.path)
    run.results.unlink()
    contents = torch.load(trained.last, weights_only=True)
    path = ("training",) if key == "training" else ("training", key)
    torch.save(changed(contents, path, lambda inner, name: inner.pop(name)), run.last)
    robust("train", tiny, "--quiet", "--resume").require(2, str(run.last), key)
    robust("train", tiny, "train.epochs=2", "--quiet", "--resume").require(2, str(run.last), key)


def test_a_damaged_state_of_a_part_is_one_message(robust: Robust, trained: RunFolder, tiny: Path) -> None:
    run = RunFolder(Path("runs") / trained.path.parent.name / trained.path.name)
    shutil.copytree(trained.path, run.path)
    run.results.unlink()
    contents = torch.load(trained.last, weights_only=True)
    for path in (("training", "optimizer", "state"), ("training", "means", "sums")):
        torch.save(changed(contents, path, lambda inner, name: inner.pop(name)), run.last)
        robust("train", tiny, "--quiet", "--resume").require(2, f"{run.last}: its state of training is damaged")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda weight: weight.to(torch.complex64), "complex64"),
        (lambda weight: (50 * weight).to(torch.int8), "int8"),
        (lambda weight: weight.to("meta"), "on the device meta"),
        (lambda weight: weight.flatten(1).to_sparse().to_dense()[:2], "do not fit"),
    ],
)
def test_weights_that_are_not_plain_numbers_are_refused(
    robust: Robust, trained: RunFolder, tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor], text: str
) -> None:
    contents = torch.load(trained.best, weights_only=True)
    weight = contents["weights"]["body.0.weight"]
    path = tmp_path / "odd.pt"
    torch.save({**contents, "weights": {**contents["weights"], "body.0.weight": change(weight)}}, path)
    robust("eval", path, "--attack", "clean", "--quiet").require(2, f"{path}: ", text)
