"""`robust push` to a folder and to a Hub; pushed results are loaded and verified."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from servers import hub_server
from shell import Robust, environment

from robustcli.store.runs import RunFolder


def test_a_pushed_folder_is_loaded_and_verified(robust: Robust, trained: RunFolder, tmp_path: Path) -> None:
    robust("push", trained.path, "out").require(0, "pushed to out")
    assert (tmp_path / "out" / "checkpoints" / "best.pt").read_bytes() == trained.best.read_bytes()
    assert not (tmp_path / "out" / "checkpoints" / "last.pt").exists()
    robust("verify", "out").require(0, "verified: ")
    words = ("--attack", "clean", "--examples", "20", "--json", "-q")
    ours, theirs = (json.loads(robust("eval", name, *words).require(0).out) for name in ("out", trained.path))
    assert ours["network"] == theirs["network"]


def test_a_zip_of_a_claim_is_verified(robust: Robust, trained: RunFolder, tmp_path: Path) -> None:
    robust("push", trained.path, "out").require(0)
    shutil.make_archive("claim", "zip", "out")
    robust("verify", "claim.zip").require(0, "verified: ")
    (tmp_path / "out" / "spec.yaml").write_text(trained.spec.read_text().replace("seed: 0", "seed: 1"))
    shutil.make_archive("changed", "zip", "out")
    robust("verify", "changed.zip").require(1, "spec.yaml was changed after the results were written")
    robust("verify", "claim.zip", "--sign", "key.pem").require(2, "claim.zip is not a folder")
    (tmp_path / "broken.zip").write_bytes(b"PK")
    robust("verify", "broken.zip").require(2, "broken.zip: cannot be unpacked")
    shutil.make_archive("empty", "zip", "out", "checkpoints")
    robust("verify", "empty.zip").require(2, "found 0 files results.json")


def test_the_folder_of_the_only_run_stands_for_it(robust: Robust, trained: RunFolder) -> None:
    robust("verify", trained.path.parents[1]).require(0, "verified: ")
    robust("diff", trained.path.parent, trained.path).require(0, "spec: ")


def test_the_card_states_numbers_verdicts_and_digests(robust: Robust, trained: RunFolder, tmp_path: Path) -> None:
    robust("push", trained.path, "out").require(0)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front)["datasets"] == ["digits"]
    results = json.loads(trained.results.read_text(encoding="utf-8"))
    for found in results["evaluations"].values():
        assert f"{100 * found['accuracy']:.1f} [" in text
        assert found["verdict"] in text
    assert results["chain"]["digest"] in text
    assert results["data"]["digest"] in text
    assert 'robustcli.load("out")' in text
    assert trained.spec.read_text(encoding="utf-8") in text


def test_what_cannot_be_pushed_is_refused(robust: Robust, trained: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    robust("push", trained.path, "full").require(2, "a folder that is not empty")
    robust("push", tmp_path / "full", "out").require(2, "a folder without a run")
    robust("push", trained.path, "hf:repo").require(2, "hf:repo: write hf:ORG/REPO")
    copy = tmp_path / "copy"
    shutil.copytree(trained.path, copy)
    (copy / "train.jsonl").write_text("")
    robust("push", copy, "out").require(2, "train.jsonl was changed after the results were written")
    (copy / "results.json").unlink()
    robust("push", copy, "out").require(2, "finish it with --resume")
    assert not (tmp_path / "out").exists()


HUB = """
import sys
from robustcli.cli.main import main
for words in sys.argv[1:]:
    sys.argv = ["robust", *words.split()]
    try:
        main()
    except SystemExit as stop:
        print("code", stop.code or 0)
"""


@pytest.mark.slow
def test_a_run_is_pushed_to_a_hub_and_evaluated_from_there(trained: RunFolder, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    repositories: dict[str, dict[str, bytes]] = {}
    variables = {"HF_HOME": str(tmp_path / "hub"), "HF_TOKEN": "hf_of_a_test", "HF_HUB_DISABLE_XET": "1"}

    def called(address: str, *commands: str, **more: str) -> subprocess.CompletedProcess[str]:
        env = environment({**variables, "HF_ENDPOINT": address, **more})
        command = [sys.executable, "-W", "ignore", "-c", HUB, *commands]
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)

    words = "--attack clean --examples 20 -q"
    with hub_server(repositories) as address:
        done = called(
            address,
            f"push {trained.path} hf:org/tiny",
            f"eval hf:org/tiny {words}",
            "verify hf:org/tiny",
            "verify hf:org/gone",
        )
    codes = [line for line in done.stdout.splitlines() if line.startswith("code")]
    assert codes == ["code 0", "code 0", "code 0", "code 2"], done.stdout + done.stderr
    assert "there is no such repository" in done.stderr
    assert repositories["org/tiny"]["checkpoints/best.pt"] == trained.best.read_bytes()
    assert b"hf:org/tiny" in repositories["org/tiny"]["README.md"]
    gone = called(address, f"push {trained.path} hf:org/other", f"eval hf:org/tiny {words}", HF_HUB_OFFLINE="1")
    assert [line for line in gone.stdout.splitlines() if line.startswith("code")] == ["code 2", "code 0"], gone.stderr
    assert "cannot be uploaded" in gone.stderr
    assert "or write the files into a folder" in gone.stderr
    assert os.environ.get("HF_TOKEN") != "hf_of_a_test"
