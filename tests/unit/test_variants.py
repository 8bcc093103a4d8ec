"""Runs of one name are distinguished by the values in which their specs differ."""

from pathlib import Path

import pytest

from robustcli.workflows import variants
from robustcli.workflows.variants import variants_of


def run(root: Path, name: str, folder: str, text: str) -> tuple[str, Path]:
    path = root / name / folder / "spec.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    return name, path


def test_values_that_differ_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [
        run(tmp_path, "a", "11-s0", "seed: 0\ndefense: {name: trades, beta: 1}\ntrain: {lr: 0.1, flag: true}\n"),
        run(tmp_path, "a", "11-s1", "seed: 1\ndefense: {name: trades, beta: 1}\ntrain: {lr: 0.1, flag: true}\n"),
        run(tmp_path, "a", "22-s0", "seed: 0\ndefense: {name: trades, beta: 6}\ntrain: {lr: 0.1, flag: false}\n"),
        run(
            tmp_path, "a", "33-s0", "seed: 0\nclaim: {source: x}\ndefense: {name: pgd}\ntrain: {lr: 0.1, flag: true}\n"
        ),
        run(tmp_path, "b", "44-s0", "seed: 0\ndefense: {name: trades, beta: 9}\n"),
        ("a", tmp_path / "a" / "55-s0" / "spec.yaml"),
        run(tmp_path, "a", "66-s0", "[damaged\n"),
    ]
    read: list[Path] = []
    values = variants._values
    monkeypatch.setattr(variants, "_values", lambda path: read.append(path) or values(path))
    assert variants_of(runs) == [
        "name=trades, beta=1, flag=true",
        "name=trades, beta=1, flag=true",
        "name=trades, beta=6, flag=false",
        "name=pgd, flag=true",
        "",
        "",
        "",
    ]
    # One spec is read for each digest, and none if a name has only one run.
    assert sorted(path.parent.name for path in read) == ["11-s0", "22-s0", "33-s0", "55-s0", "66-s0"]


def test_many_values_are_cut(tmp_path: Path) -> None:
    runs = [run(tmp_path, "a", f"{n}{n}-s0", "".join(f"k{i}: {n}\n" for i in range(6))) for n in (1, 2)]
    assert variants_of(runs)[0] == "k0=1, k1=1, k2=1, k3=1, ..."


def test_equal_specs_have_no_variant(tmp_path: Path) -> None:
    assert variants_of([run(tmp_path, "a", f"{n}-s0", "k: 1\n") for n in (1, 2)]) == ["", ""]
