"""`robust report --html` and `robust show-examples` on a small run."""

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from shell import Robust
from stored_results import evaluation, run_results

from robustcli.reports.charts import pareto_front
from robustcli.reports.html import _diagnostics, write_page
from robustcli.reports.summary import Source

SPEC = ("demo/digits_pgd_at", "train.epochs=1", "train.eps_warmup=0", "data.train_size=100", "train.batch_size=50")
ATTACK = "{pgd: {name: attack, attack: {name: pgd, steps: 2}, examples: 30, save_examples: true}}"


@pytest.fixture
def runs(robust: Robust, tmp_path: Path) -> Path:
    """Folder with one run that stored adversarial examples."""
    robust("train", *SPEC, f"evaluate={ATTACK}", "--runs", tmp_path / "runs", "-q").require(0)
    return tmp_path / "runs"


class Balance(HTMLParser):
    """Collects tags that are not closed."""

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


def test_survivors_and_the_curve_over_eps_are_shown(robust: Robust, runs: Path, tmp_path: Path) -> None:
    (run,) = (path.parent for path in runs.glob("*/*/results.json"))
    rows = list(csv.DictReader((run / "evaluations" / "pgd.csv").read_text().splitlines()))
    survived = sorted((row for row in rows if not row["broken_by"]), key=lambda row: -float(row["margin"]))
    assert survived
    words = ("--with", "eps_curve", "--examples", 20, "-q", "--out", run / "diagnose.json")
    robust("diagnose", run / "checkpoints" / "best.pt", *words, "eps_curve.radii=[0, 0.1, 0.5]").require(0)
    (run / "other.json").write_text('{"diagnostics": {"eps_curve": 3}}')
    robust("report", runs, "--html", tmp_path / "out.html").require(0)
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert "Accuracy over eps, 20 images" in page
    assert "eps in linf" in page
    found = re.findall(r"image (\d+), which survived", page)
    assert found == [row["image"] for row in survived[:8]]


def test_curves_of_all_diagnostics_are_drawn(tmp_path: Path) -> None:
    curve = [{"queries": 1, "accuracy": 0.5, "correct": 10}, {"queries": 8, "accuracy": 0.25, "correct": 5}]
    found = {"theirs": {"found": {"curve": curve}}, "no_curve": {"found": {"mean": 1.0}}}
    stored = {"diagnostics": found, "threat": {"norm": "l2"}, "examples": 20}
    (tmp_path / "diagnose.json").write_text(json.dumps(stored))
    (chart,) = _diagnostics(tmp_path)
    assert "Accuracy over queries, 20 images" in chart


@pytest.mark.slow
def test_a_sweep_gets_a_leaderboard_and_a_pareto_front(robust: Robust, tmp_path: Path) -> None:
    words = (*SPEC, f"evaluate={ATTACK}", "architecture.width=2,4", "--runs", tmp_path / "runs", "-q")
    robust("train", *words).require(0)
    # Together with an evaluation and a finished run, on one page.
    (first, _) = sorted((tmp_path / "runs").glob("*/*/checkpoints/best.pt"))
    robust("eval", first, "--attack", "fgsm", "--examples", 20, "-q").require(0)
    robust("report", tmp_path / "runs", "evals", "--html", tmp_path / "out.html").require(0)
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert page.count("<section>") == 3
    assert "with the Pareto front" in page
    assert page.count('class="front"') == 1
    said = robust("report", tmp_path / "runs", first.parent.parent, "evals", "--json").require(0)
    rows = [(row["experiment"], row["key"]) for row in json.loads(said.out)]
    widths = ["digits_pgd_at (width=2)", "digits_pgd_at (width=4)"]
    assert sorted(rows[:2]) == [(width, "pgd") for width in widths]
    assert rows[2:] in ([(width, "fgsm")] for width in widths)
    # A file of results works, too; missing parts leave no empty table.
    (stored,) = Path("evals").glob("*/results.json")
    shutil.copyfile(stored, "out.json")
    assert len(json.loads(robust("report", "out.json", "--json").require(0).out)) == 1
    robust("report", "evals", "nowhere").require(2, "nowhere: no such file or folder")


def test_the_sentence_says_why_a_number_is_an_upper_bound(tmp_path: Path) -> None:
    stage = {"entered": 3, "broken": 1, "forwards": 9, "gradients": 3, "seconds": 1.0}
    by_gradient = {**stage, "name": "apgd-ce", "is_black_box": False}
    square = {**stage, "name": "square", "is_black_box": True, "sampled": 2, "entered": 2, "broken": 0}
    results = run_results(
        {
            "pgd": evaluation("110", stages=[by_gradient]),
            "quick": evaluation("110", evaluator="quick", stages=[by_gradient, square], sample="110"),
        }
    )
    write_page(tmp_path / "out.html", [Source(tmp_path / "results.json", results, "cpu")], [])
    sentences = re.findall(r"<p>(\d of .*?)</p>", (tmp_path / "out.html").read_text(encoding="utf-8"))
    assert ["Only one kind of attack" in sentence for sentence in sentences] == [True, False]
    assert "ran only on a sample of the images" in sentences[1]


def test_the_pareto_front_has_the_points_that_no_other_beats() -> None:
    assert pareto_front([(3, 5), (1, 2), (2, 1), (2, 4), (4, 5), (5, 6)]) == [(1, 2), (2, 4), (3, 5), (5, 6)]


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


def test_a_page_is_written_if_results_per_image_are_damaged(robust: Robust, runs: Path, tmp_path: Path) -> None:
    (lines,) = runs.glob("*/*/evaluations/pgd.csv")
    lines.write_text("")
    page = tmp_path / "page.html"
    robust("report", runs, "--html", page).require(0)
    assert "results per image are not shown: " in page.read_text(encoding="utf-8")
