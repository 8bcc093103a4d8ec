"""`robust report --html` and `robust show-examples` on a small run."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from shell import Robust

SPEC = ("demo/digits_pgd_at", "train.epochs=1", "train.eps_warmup=0", "data.train_size=100", "train.batch_size=50")
ATTACK = "{pgd: {name: attacked, attack: {name: pgd, steps: 2}, examples: 30, witnesses: true}}"


@pytest.fixture
def runs(robust: Robust, tmp_path: Path) -> Path:
    """Folder with one run that stored adversarial examples."""
    robust("train", *SPEC, f"evaluate={ATTACK}", "--runs", tmp_path / "runs", "-q").require(0)
    return tmp_path / "runs"


class Balance(HTMLParser):
    """Collects tags that are opened and not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "img", "line", "rect", "circle", "polyline"):
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "rect", "circle", "polyline"):
            assert self.stack.pop() == tag


def test_the_page_is_self_contained_and_shows_the_evidence(robust: Robust, runs: Path, tmp_path: Path) -> None:
    robust("report", runs, "--html", tmp_path / "out.html").require(0)
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    balance = Balance()
    balance.feed(page)
    assert balance.stack == []
    assert re.findall(r'(?:src|href)="(?!data:|#)', page) == []
    assert "Images left after each attack" in page
    assert "still correct under linf" in page
    assert page.count("data:image/png;base64") >= 3
    assert "name: digits_pgd_at" in page


def test_text_from_files_is_escaped(robust: Robust, runs: Path, tmp_path: Path) -> None:
    (spec,) = runs.glob("*/*/spec.yaml")
    spec.write_text(spec.read_text() + "# <script>alert(1)</script>\n")
    robust("report", runs, "--html", tmp_path / "out.html").require(0)
    assert "<script>alert(1)" not in (tmp_path / "out.html").read_text()


def test_examples_are_written_for_other_tools(robust: Robust, runs: Path, tmp_path: Path) -> None:
    (run,) = (path.parent for path in runs.glob("*/*/results.json"))
    out, picture = tmp_path / "examples.npz", tmp_path / "examples.png"
    robust("show-examples", run, "--out", out, "--picture", picture).require(0)
    with np.load(out, allow_pickle=False) as found:
        assert found["x_adv"].dtype == np.float32
        assert 0 <= found["x_adv"].min() <= found["x_adv"].max() <= 1
        assert np.abs(found["x_adv"] - found["x"]).max() <= 0.15 + 1e-6
        assert (found["predictions"] != found["labels"]).all()
        assert len(found["x"]) == len(found["indices"]) > 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_missing_examples_are_one_message(robust: Robust, runs: Path) -> None:
    (run,) = (path.parent for path in runs.glob("*/*/results.json"))
    robust("show-examples", run, "--key", "autoattack").require(2, "no adversarial examples of 'autoattack'")
