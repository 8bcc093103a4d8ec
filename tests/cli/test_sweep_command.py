"""`robust sweep` runs rows once, resumes after a kill, shares rows between processes, and tolerates failures."""

import json
import signal
from pathlib import Path
from xml.etree import ElementTree

import pytest
from killing import Plan, Sessions
from shell import Outcome, Robust

from robustcli.store.files import read_json, write_text
from robustcli.store.runs import lock_folder
from robustcli.workflows import sweep as rows_module
from robustcli.workflows.sweep_spec import Sweep

SWEEP = """\
# Three ways to train on 64 digits.
name: family
base:
  data: {name: digits, val_size: 50, train_size: 64}
  architecture: {name: small_cnn, width: 4, hidden: 16}
  threat: {norm: linf, eps: 0.1}
  defense: {name: pgd_at, steps: 2}
  train: {epochs: 2, batch_size: 32, lr: 1e-2, optimizer: adam, check_examples: 20, check_steps: 2, device: cpu}
  evaluate:
    clean: {name: clean, examples: 40}
    pgd: {name: attack, attack: {name: pgd, steps: 3, keep: fooled}, examples: 40}
rows:
  natural: {defense: natural}
  pgd_at: {}
  free: {defense: {name: free, replays: 2}}
"""
# Weights overflow at once.
FAILING = SWEEP.replace("  pgd_at: {}", "  pgd_at: {train: {lr: 1e+38, optimizer: sgd}}")


@pytest.fixture
def family(tmp_path: Path) -> Path:
    path = tmp_path / "family.yaml"
    path.write_text(SWEEP, encoding="utf-8")
    return path


def told(outcome: Outcome) -> dict[str, dict[str, object]]:
    return {row["row"]: row for row in json.loads(outcome.out)}


def times(folder: Path) -> dict[str, int]:
    return {path.as_posix(): path.stat().st_mtime_ns for path in sorted(folder.rglob("results.json"))}


def test_a_sweep_trains_every_row_once_and_then_reads_them(robust: Robust, family: Path) -> None:
    said = robust("sweep", "family.yaml", "-q").require(0)
    lines = [line for line in said.out.splitlines() if line.startswith("|")]
    assert lines[0] == (
        "| row | threat | epochs | clean % | pgd % | parameters | GFLOPs | training TFLOPs | passes | images/s | "
        "best - last |"
    )
    assert [line.split()[1] for line in lines[2:]] == ["natural", "pgd_at", "free"]
    before = times(Path("runs"))
    assert [Path(path).parts[1] for path in before] == ["family.free", "family.natural", "family.pgd_at"]
    again = robust("sweep", "family.yaml", "-q", "--json").require(0)
    assert times(Path("runs")) == before
    rows = told(again)
    assert rows["pgd_at"]["passes"] == {"forwards": 3, "input_gradients": 2, "weight_gradients": 1}
    for name, row in rows.items():
        (results,) = (read_json(path) for path in Path("runs").glob(f"family.{name}/*/results.json"))
        assert row["evaluations"]["pgd"][0]["correct"] == results["evaluations"]["pgd"]["correct"]  # type: ignore[index]
    # Every batch is replayed once.
    (log,) = Path("runs").glob("family.free/*/train.jsonl")
    seconds = sorted(json.loads(line)["seconds"] for line in log.read_text(encoding="utf-8").splitlines())
    assert rows["free"]["images_per_second"] == pytest.approx(2 * 64 / (sum(seconds) / 2))


def test_best_minus_last_is_read_from_the_log(robust: Robust, family: Path) -> None:
    robust("sweep", "family.yaml", "-q", "--row", "pgd_at").require(0)
    (log,) = Path("runs").glob("family.pgd_at/*/train.jsonl")
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    for record, robust_accuracy in zip(records, (0.8, 0.55), strict=True):
        record["robust"] = robust_accuracy
    write_text(log, "".join(json.dumps(record) + "\n" for record in records))
    row = told(robust("sweep", "family.yaml", "-q", "--json", "--row", "pgd_at"))["pgd_at"]
    assert row["best_minus_last"] == pytest.approx(0.25)


def test_the_table_goes_into_the_block_of_the_sweep(robust: Robust, family: Path) -> None:
    page = Path("page.md")
    page.write_text("before\n<!-- family -->\nold\n<!-- /family -->\nafter\n", encoding="utf-8")
    said = robust("sweep", "family.yaml", "-q", "--row", "natural", "--into", "page.md").require(0)
    assert said.out == ""
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- family -->\n| row |")
    assert text.endswith("<!-- /family -->\nafter\n")
    assert "| natural |" in text
    assert "old" not in text
    assert "pgd_at" not in text


def test_a_page_without_the_block_is_refused_before_anything_runs(robust: Robust, family: Path) -> None:
    Path("page.md").write_text("nothing\n", encoding="utf-8")
    robust("sweep", "family.yaml", "-q", "--into", "page.md").require(2, "found no block; expected <!-- family -->")
    assert not Path("runs").exists()


def test_everything_is_checked_before_anything_runs(robust: Robust, family: Path) -> None:
    family.write_text(SWEEP.replace("replays: 2", "replay: 2"), encoding="utf-8")
    robust("sweep", "family.yaml").require(2, "row free: line 15: defense.replay: unknown parameter", "'replays'")
    assert not Path("runs").exists()
    family.write_text(SWEEP, encoding="utf-8")
    robust("sweep", "family.yaml", "--row", "natrual").require(2, "did you mean 'natural'?")
    robust("sweep", "demo/digits_pgd_at").require(2, "found a spec; expected a sweep, or several values such as")
    robust("train", "family.yaml").require(2, "run it with robust sweep")
    assert not Path("runs").exists()


def test_a_failing_row_is_reported_and_the_others_continue(robust: Robust, family: Path) -> None:
    family.write_text(FAILING, encoding="utf-8")
    said = robust("sweep", "family.yaml", "-q").require(4, "training failed in pgd_at")
    lines = {line.split()[1]: line for line in said.out.splitlines() if line.startswith("|")}
    assert lines["pgd_at"].count("failed") == 2
    assert "failed" not in lines["natural"] + lines["free"]
    assert "- pgd_at, seed 0: failed: the loss is not finite in epoch 1" in said.out
    (log,) = Path("runs").glob("family.pgd_at/*/train.jsonl")
    before = log.stat().st_mtime_ns
    # It is not tried again, and the rest is read.
    again = robust("sweep", "family.yaml", "-q").require(4, "the loss is not finite in epoch 1")
    assert log.stat().st_mtime_ns == before
    assert [line for line in again.out.splitlines() if line.startswith("| free")]


def test_missing_images_are_no_failure_of_a_row(robust: Robust, family: Path) -> None:
    family.write_text(SWEEP.replace("{name: digits,", "{name: mnist, root: nowhere,"), encoding="utf-8")
    robust("sweep", "family.yaml", "-q").require(2, "nowhere")


def test_a_row_that_another_process_has_is_left_to_it_and_read_later(
    robust: Robust, family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    natural = Sweep.read(family).rows[0].specs[0]
    lock = lock_folder(Path("runs") / natural.name / f"{natural.digest}-s0")
    finished_first = []

    def wait(_seconds: float) -> None:
        # The other process ends before its work is done.
        finished_first.extend(sorted(path.parts[1] for path in Path("runs").rglob("results.json")))
        lock.release()

    monkeypatch.setattr(rows_module.time, "sleep", wait)
    rows = told(robust("sweep", "family.yaml", "-q", "--json").require(0))
    assert finished_first == ["family.free", "family.pgd_at"]
    assert list(rows) == ["natural", "pgd_at", "free"]


def test_sweeps_are_listed_shown_and_validated(robust: Robust, family: Path) -> None:
    said = robust("validate", "family.yaml", "demo/digits_pgd_at").require(0, "family.yaml: valid, 3 rows")
    assert "demo/digits_pgd_at: valid, digest" in said.out
    family.write_text(SWEEP.replace("steps: 2", "stps: 2"), encoding="utf-8")
    robust("validate", "family.yaml").require(2, "row pgd_at: line 7: defense.stps")
    robust("list", "experiments").require(0, "sweeps/mnist_defenses", "sweeps/cifar10_jpeg_defenses")
    robust("show", "sweeps/mnist_defenses").require(0, "name: defenses-mnist")


@pytest.mark.slow
def test_a_killed_sweep_resumes(family: Path, tmp_path: Path) -> None:
    sessions = Sessions(tmp_path)
    # In the second row: 4 updates belong to the first.
    assert sessions.run("sweep", "family.yaml", "-q", plan=Plan(("step",), 7)) == -signal.SIGKILL
    assert list(times(tmp_path / "runs")) == [
        path.as_posix() for path in (tmp_path / "runs").glob("family.natural/*/results.json")
    ]
    assert sessions.run("sweep", "family.yaml", "-q", plan=Plan(("step",), 4, signal.SIGTERM)) == 3
    assert sessions.run("sweep", "family.yaml", "-q", "--json") == 0
    resumed = json.loads(sessions.log.read_text(encoding="utf-8"))
    assert sessions.run("sweep", "family.yaml", "-q", "--json", "--runs", "others") == 0
    straight = json.loads(sessions.log.read_text(encoding="utf-8"))
    assert [row["evaluations"] for row in resumed] == [row["evaluations"] for row in straight]


@pytest.mark.slow
def test_values_on_the_command_line_make_a_grid(robust: Robust, tiny: Path) -> None:
    said = robust("train", "tiny.yaml", "seed=0,1", "defense.steps=1,2", "-q").require(0)
    lines = [line for line in said.out.splitlines() if line.startswith("|")]
    assert [line.split()[1] for line in lines[2:]] == ["steps=1", "steps=2"]
    assert "±" in lines[2]
    assert len(list(Path("runs/tiny").glob("*-s0/results.json"))) == 2
    before = times(Path("runs"))
    # The runs of single values and of a sweep with the same grid are the same.
    robust("train", "tiny.yaml", "seed=1", "defense.steps=2", "-q").require(0)
    rows = told(robust("sweep", "tiny.yaml", "seed=0,1", "defense.steps=1,2", "--json", "-q").require(0))
    assert times(Path("runs")) == before
    assert rows["steps=2"]["seeds"] == [0, 1]
    assert (rows["steps=1"]["passes"], rows["steps=2"]["passes"]) == (
        {"forwards": 2, "input_gradients": 1, "weight_gradients": 1},
        {"forwards": 3, "input_gradients": 2, "weight_gradients": 1},
    )
    macs = rows["steps=2"]["macs"]
    assert isinstance(macs, int)
    # 128 images, once, and 7 passes.
    assert rows["steps=2"]["training_flops"] == 2 * macs * 7 * 128


@pytest.mark.slow
def test_a_dry_run_trains_nothing_and_lists_what_is_left(robust: Robust, tiny: Path) -> None:
    robust("train", "tiny.yaml", "-q").require(0)
    before = times(Path("runs"))
    said = robust("sweep", "tiny.yaml", "seed=0..2", "--dry-run", "--json").require(0, "measuring all ...")
    (row,) = json.loads(said.out).values()
    assert (row["seeds"], row["left"], row["fits"]) == (3, 2, True)
    assert sorted(row["runs"].values()) == ["finished", "not started", "not started"]
    assert times(Path("runs")) == before
    assert len(list(Path("runs/tiny").iterdir())) == 1


def test_a_list_can_be_searched(robust: Robust) -> None:
    said = robust("list", "experiments", "--match", "TRADES").require(0, "cifar10/trades_awp", "smoke/trades")
    assert "cifar10/pgd_at_rice" not in said.out
    robust("list", "--paper", "trades").require(0, "defenses", "experiments")
    robust("list", "losses", "--match", "x").require(2, "no family 'losses'")
    robust("list", "defenses", "--match", "nothing-like-it").require(2, "--match: nothing has 'nothing-like-it'")


@pytest.mark.slow
def test_runs_of_a_grid_are_distinguished_and_compared_by_cost(robust: Robust, tiny: Path) -> None:
    words = ("train", "tiny.yaml", "architecture.width=2,4", "seed=0,1")
    begun = [line for line in robust(*words).require(0).err.splitlines() if line.startswith("width=")]
    assert begun == [f"width={width}, seed {seed}:" for width in (2, 4) for seed in (0, 1)]
    assert "seed 1:" not in robust(*words).require(0).err
    lines = robust("runs", "--sort", "seconds").require(0).out.splitlines()
    assert sorted(line.rpartition("  ")[2] for line in lines[1:]) == ["width=2"] * 2 + ["width=4"] * 2
    assert all(" pgd " in line for line in lines[1:])
    (one, *_) = sorted(Path("runs/tiny").iterdir())
    alone = robust("runs", one).require(0).out.splitlines()
    assert alone[1].endswith(str(one))
    assert len(alone) == 2
    said = robust("pareto", "--x", "parameters", "--y", "pgd", "--out", "front.svg").require(0, "wrote front.svg")
    rows = [line.split() for line in said.out.splitlines() if line.startswith("tiny ")]
    assert [row[1] for row in rows] == ["(width=2)", "(width=4)"]
    assert rows[0][-1] == "*"
    accuracies = [read_json(path)["evaluations"]["pgd"]["accuracy"] for path in Path("runs").rglob("results.json")]
    assert sum(float(row[3]) for row in rows) == pytest.approx(100 * sum(accuracies) / 2, abs=0.1)
    root = ElementTree.parse("front.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    # One for each point and one for its name below the axes.
    assert len(root.findall(".//{*}circle")) == 4
    robust("pareto", "--x", "flops").require(2, "--x: found 'flops'; did you mean 'gflops'?")
    robust("pareto", "--out", "front.png").require(2, "expected .svg")
