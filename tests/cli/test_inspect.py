"""`robust inspect` describes files of networks."""

import hashlib
import json
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from shell import Robust

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.store.runs import RunFolder

SHAPE = ImageShape(3, 32, 32, 10)


def test_a_run_is_described(robust: Robust, trained: RunFolder) -> None:
    facts = json.loads(robust("inspect", trained.path, "--json").require(0).out)
    assert facts["kind"] == "checkpoint of robust train"
    assert facts["sha256"] == hashlib.sha256(trained.best.read_bytes()).hexdigest()
    assert facts["architecture"]["name"] == "small_cnn"
    assert (facts["threat"], facts["data"], facts["images"]) == ("linf 0.1", "digits", "1x8x8, 10 classes")
    assert facts["evaluations"] == ["clean", "pgd"]
    sizes = {key: facts["architecture"][key] for key in ("width", "hidden")}
    network = ARCHITECTURES.get("small_cnn")(ImageShape(1, 8, 8, 10), **sizes)
    assert facts["parameters"] == sum(value.numel() for value in network.parameters()) > 1000
    robust("inspect", trained.best).require(0, "kind: checkpoint of robust train", "next: robust eval")


def test_weights_name_their_likely_architecture_and_the_next_command(robust: Robust, tmp_path: Path) -> None:
    network = ARCHITECTURES.get("resnet18")(SHAPE, width=4)
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    state |= {"module.mu": torch.full((3, 1, 1), 0.5), "module.sigma": torch.full((3, 1, 1), 0.25)}
    torch.save({"model": state, "ema": state, "epoch": 3}, "w.pt")
    facts = json.loads(robust("inspect", "w.pt", "--json").require(0).out)
    assert facts["kind"] == "weights of another program"
    assert set(facts["sets"]) == {"model", "ema"}
    assert facts["normalization"] == {"mean": [0.5] * 3, "std": [0.25] * 3}
    assert facts["likely_architecture"] == "--architecture resnet18 architecture.width=4"
    assert facts["sets"]["model"]["values"] == sum(value.numel() for value in state.values())
    command = facts["next"].split()
    assert command[:3] == ["robust", "eval", "w.pt"]
    data = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    np.savez("x.npz", x_test=data, y_test=np.arange(20) % 10)
    words = [word.replace("DATA", "x.npz") for word in command[1:]]
    robust(*words, "--weights-key", "ema", "--attack", "clean").require(0, "clean")


def test_torchscript_is_recognized_and_other_files_are_refused(robust: Robust, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.save(torch.jit.script(torch.nn.Flatten()), "s.pt")  # type: ignore[no-untyped-call]
    robust("inspect", "s.pt").require(0, "kind: TorchScript")
    robust("inspect", "gone.pt").require(2, "gone.pt: no such file")
    (tmp_path / "page.pt").write_text("<!DOCTYPE html>")
    robust("inspect", "page.pt").require(2, "an HTML or XML page")
    with zipfile.ZipFile("claim.zip", "w") as archive:
        archive.writestr("run/results.json", "{}")
    robust("inspect", "claim.zip").require(2, "a zip archive of other files; unpack it")


def test_a_name_of_timm_is_not_a_file(robust: Robust) -> None:
    pytest.importorskip("timm")
    robust("inspect", "timm:resnet18").require(2, "does not name a file")


def test_a_name_of_timm_may_be_the_architecture_of_a_file(robust: Robust, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")

    torch.manual_seed(0)
    network = timm.create_model("mobilenetv3_small_050", num_classes=10)
    torch.save({"state_dict": network.state_dict()}, "w.pt")
    data = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), dtype=np.uint8)
    np.savez("x.npz", x_test=data, y_test=np.arange(20) % 10)
    words = ("--data", "x.npz", "--mean", "0", "--std", "1", "--attack", "clean", "--json", "-q", "-n", "15")
    one = robust("eval", "w.pt", "--arch", "timm:mobilenetv3_small_050", *words).require(0)
    other = robust("eval", "timm:mobilenetv3_small_050", "--weights", "w.pt", *words).require(0)
    found, expected = (json.loads(said.out)["evaluations"]["clean"]["survivors"] for said in (one, other))
    assert found == expected
    assert len(found) == 15
