"""An architecture search on the command line ends with a spec that can be trained."""

from pathlib import Path

import pytest
from shell import Robust

from robustcli.store.files import read_json


@pytest.mark.slow
def test_a_search_prints_a_spec_that_trains(robust: Robust, tmp_path: Path) -> None:
    less = ("train.epochs=1", "data.train_size=64", "evaluate={clean: {name: clean, examples: 20}}", "train.device=cpu")
    said = robust("train", "smoke/dsara", *less, "--quiet").require(0, "the network that was found: robust train ")
    path = Path(said.out.rpartition("robust train ")[2].strip())
    assert path.name == "derived.yaml"
    first = path.read_bytes()
    robust("validate", path).require(0, "valid")
    # A finished run prints it again.
    robust("train", "smoke/dsara", *less, "--quiet").require(0, f"robust train {path}")
    assert path.read_bytes() == first
    robust("train", path, "architecture.width=3", "--quiet").require(0, "smoke_dsara_derived, seed 0: finished")
    results = [read_json(found) for found in (tmp_path / "runs").rglob("results.json")]
    assert {result["name"] for result in results} == {"smoke_dsara", "smoke_dsara_derived"}
