"""`robust diff` finds planted differences between two results."""

import json
from pathlib import Path

import pytest
from shell import Robust
from stored_results import evaluation, run_results

from robustcli.store.files import write_json
from robustcli.store.provenance import DataRecord, Session
from robustcli.store.runs import RunFolder

SESSION = Session(
    started="2026-01-01T00:00:00+00:00",
    command=["robust", "train"],
    device="cpu",
    platform="Linux x86_64",
    python="3.12.1",
    versions={"robustcli": "0.1", "torch": "2.5"},
    commit="a" * 40,
    dirty=False,
)


def planted(folder: Path, survivors: str, *, beta: int = 6, digest: str = "d" * 64, **session: object) -> Path:
    folder.mkdir()
    sizes = run_results().data.sizes
    data = DataRecord(digest=digest, sizes=sizes, decode="")
    stored = run_results({"pgd": evaluation(survivors)}, data=data)
    write_json(folder / "results.json", stored.to_json())
    (folder / "spec.yaml").write_text(f"name: x\ndefense: {{name: trades, beta: {beta}}}\n", encoding="utf-8")
    sessions = [SESSION.model_copy(update=session).to_json()]
    write_json(folder / "provenance.json", {"data": data.to_json(), "sessions": sessions})
    return folder


def test_a_result_does_not_differ_from_itself(robust: Robust, trained: RunFolder) -> None:
    said = robust("diff", trained.path, trained.results).require(0, "data: the same images", "evaluation pgd: the same")
    assert "different" not in said.out
    value = json.loads(robust("diff", trained.path, trained.path, "--json").out)
    assert not any(value["differences"].values())


def test_every_difference_is_shown_in_its_section(robust: Robust, tmp_path: Path) -> None:
    a = planted(tmp_path / "a", "11010")
    b = planted(tmp_path / "b", "10011", beta=3, versions={"robustcli": "0.2", "torch": "2.6"}, dirty=True)
    found = json.loads(robust("diff", a, b, "--json").require(0).out)["differences"]
    assert found["spec"] == ["defense.beta: 6 in A, 3 in B"]
    assert found["data"] == found["weights"] == found["evaluations"] == []
    assert found["environment"] == ["torch: 2.5 in A, 2.6 in B"]
    assert found["code"] == [
        "robustcli: 0.1 in A, 0.2 in B",
        "code of commit aaaaaaaaaaaa: not modified in A, modified in B",
    ]
    assert found["evaluation pgd"][1:] == [
        "2 of 5 images have different outcomes, McNemar p = 1",
        "correct only in A: 1 (image 1)",
        "correct only in B: 1 (image 4)",
    ]
    robust("diff", a, b).require(0, "spec: different\n  defense.beta: 6 in A, 3 in B\n", "weights: the same")


def test_different_images_are_not_compared_one_by_one(robust: Robust, tmp_path: Path) -> None:
    a, b = planted(tmp_path / "a", "11010"), planted(tmp_path / "b", "10011", digest="e" * 64)
    found = json.loads(robust("diff", a, b, "--json").require(0).out)["differences"]
    assert found["data"] == ["digest of the images: dddddddddddd in A, eeeeeeeeeeee in B"]
    (line,) = found["evaluation pgd"]
    assert line.endswith("on different images")


@pytest.mark.parametrize(("steps", "same"), [(3, True), (2, False)])
def test_a_run_and_an_evaluation_of_its_weights(robust: Robust, trained: RunFolder, steps: int, *, same: bool) -> None:
    words = ("--attack", "pgd", "--steps", steps, "--examples", 60, "--out", "out.json", "-q")
    robust("eval", trained.best, *words).require(0)
    found = json.loads(robust("diff", trained.path, "out.json", "--json").require(0).out)["differences"]
    assert found["spec"] == found["weights"] == found["data"] == found["environment"] == []
    assert found["evaluations"] == ["only in A: clean"]
    assert found["evaluation pgd"][:1] == ([] if same else ["attack.steps 3 in A, 2 in B"])


def test_two_attacks_on_one_network_are_compared_by_image(robust: Robust, trained: RunFolder) -> None:
    for attack in ("fgsm", "apgd"):
        robust("eval", trained.best, "--attack", attack, "--examples", 60, "-q", "--out", f"{attack}.json").require(0)
    found = json.loads(robust("diff", "fgsm.json", "apgd.json", "--json").require(0).out)["differences"]
    assert found["evaluations"] == ["only in A: fgsm", "only in B: apgd"]
    assert found["evaluation fgsm:apgd"][0] == "attack.name fgsm in A, apgd in B"


def test_what_is_no_result_is_refused(robust: Robust, tmp_path: Path) -> None:
    robust("diff", tmp_path, tmp_path).require(2, "found no results.json in this folder")
