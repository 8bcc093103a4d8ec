"""Training and evaluation are killed a hundred times; resumed results are bit-identical."""

import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killing import ALL_KINDS, Plan, Sessions
from test_resume import TRADES, outcome, require_same, the_run, without_seconds

from robustcli.store.files import read_json

pytestmark = pytest.mark.full

KILLS = 34
ATTACK = ("--attack", "autoattack", "--attacks", "apgd-ce,square", "--examples", "24", "--batch-size", "8", "--quiet")


def evaluated(folder: Path) -> dict[str, Any]:
    """Everything that an evaluation found, without its seconds."""
    (path,) = (folder / "evals").iterdir()
    assert not list(path.rglob("*.journal"))
    results = read_json(path / "results.json")
    lines = {file.name: file.read_bytes() for file in sorted((path / "evaluations").glob("*.csv"))}
    return {**lines, "evaluations": without_seconds(results["evaluations"]), "network": results["network"]}


def kill_often(sessions: Sessions, words: tuple[str, ...], check: Callable[[], None], *, seed: int, most: int) -> None:
    """Run a command repeatedly, killed at random events, and check finished results.

    Args:
        most: upper bound of the event at which a command is killed.
    """
    rng, kills = random.Random(seed), 0
    while True:
        code = sessions.run(*words, plan=Plan(ALL_KINDS, rng.randrange(1, most)) if kills < KILLS else Plan())
        said = sessions.log.read_text(encoding="utf-8")
        if code == 2 and "in use by another process" in said:
            # Workers end a moment after their killed parent.
            time.sleep(0.05)
            continue
        if code != 0:
            assert code == -signal.SIGKILL or "a worker ended with exit code -9" in said, said
            kills += 1
            continue
        check()
        if kills >= KILLS:
            return
        for place in ("runs", "evals"):
            shutil.rmtree(sessions.folder / place, ignore_errors=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an uninterrupted run and an evaluation of its network."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "spec.yaml").write_text(TRADES, encoding="utf-8")
    assert Sessions(folder).run("train", "spec.yaml", "-q") == 0
    assert Sessions(folder).run("eval", str(the_run(folder).best), *ATTACK) == 0
    return folder


def test_training_killed_at_random_moments(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(TRADES, encoding="utf-8")
    expected = outcome(whole)
    words = ("train", "spec.yaml", "-q", "--resume")
    kill_often(Sessions(tmp_path), words, lambda: require_same(tmp_path, expected), seed=0, most=24)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_autoattack_killed_at_random_moments(whole: Path, tmp_path: Path, workers: int) -> None:
    expected = evaluated(whole)

    def check() -> None:
        assert evaluated(tmp_path) == expected

    words = ("eval", str(the_run(whole).best), *ATTACK, "--workers", str(workers))
    kill_often(Sessions(tmp_path), words, check, seed=workers, most=12)
