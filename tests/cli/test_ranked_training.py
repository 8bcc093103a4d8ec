"""Training in several processes, killed or stopped anywhere and resumed, ends like an uninterrupted run."""

import random
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from killing import ALL_KINDS, Plan
from ranked import RankedSessions
from test_resume import FREE, SPECS, SWA, TRADES, outcome, the_run

from robustcli.store.checkpoint import ResumableCheckpoint
from robustcli.store.files import read_json
from robustcli.store.runs import RunFolder

pytestmark = pytest.mark.slow

KILLED, STOPPED = -signal.SIGKILL, 3


def session_in(folder: Path, spec: str = TRADES) -> RankedSessions:
    sessions = RankedSessions(folder)
    (folder / "spec.yaml").write_text(spec, encoding="utf-8")
    return sessions


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], RankedSessions]:
    """Finished trainings of two processes, each run once."""

    @cache
    def run(name: str) -> RankedSessions:
        sessions = session_in(tmp_path_factory.mktemp("uninterrupted"), SPECS[name])
        # Plans without a kill only count events.
        plans = {rank: Plan(ALL_KINDS) for rank in (0, 1)}
        assert sessions.run("train", "spec.yaml", "--quiet", plans=plans) == [0, 0]
        return sessions

    return run


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.full) if name == "pgd_at_swa" else name for name in SPECS]
)
def test_killed_anywhere_and_resumed_it_is_bit_identical(
    name: str, uninterrupted: Callable[[str], RankedSessions], tmp_path: Path
) -> None:
    whole = uninterrupted(name)
    rng = random.Random(name)
    killed = session_in(tmp_path / "killed", SPECS[name])
    for rank in (0, 1):
        plan = Plan(ALL_KINDS, rng.randint(1, max(1, whole.events(rank) // 3)))
        codes = killed.run("train", "spec.yaml", "--quiet", "--resume", plans={rank: plan})
        # The other process notices the loss at once.
        assert codes[rank] == KILLED
        assert codes[1 - rank] == STOPPED
    assert killed.run("train", "spec.yaml", "--quiet", "--resume") == [0, 0]
    assert outcome(killed.folder) == outcome(whole.folder)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_process_saves_and_ends_all(
    rank: int, uninterrupted: Callable[[str], RankedSessions], tmp_path: Path
) -> None:
    whole, stopped = uninterrupted("trades_awp_ema"), session_in(tmp_path / "stopped")
    plans = {rank: Plan(("step",), 6, signal.SIGTERM)}
    assert stopped.run("train", "spec.yaml", "--quiet", plans=plans) == [STOPPED, STOPPED]
    assert ResumableCheckpoint.read(the_run(stopped.folder).last).training.updates == 6
    assert "continue with --resume" in stopped.log(0).read_text(encoding="utf-8")
    assert stopped.run("train", "spec.yaml", "--quiet", "--resume") == [0, 0]
    assert outcome(stopped.folder) == outcome(whole.folder)


def test_another_number_of_processes_resumes(tmp_path: Path) -> None:
    """Free training keeps a perturbation for every position in the batch; each process has its slice."""
    sessions = session_in(tmp_path / "run", SPECS["free_ema"])
    plans = {0: Plan(("step",), 3, signal.SIGTERM)}
    assert sessions.run("train", "spec.yaml", "--quiet", plans=plans) == [STOPPED, STOPPED]
    assert sessions.run("train", "spec.yaml", "--quiet", "--resume", count=3, plans=plans) == [STOPPED] * 3
    assert sessions.run("train", "spec.yaml", "--quiet", "--resume", count=1) == [0]
    found = read_json(the_run(sessions.folder).provenance)["sessions"]
    assert [(session.get("processes"), session.get("backend")) for session in found] == [
        (2, "gloo"),
        (3, "gloo"),
        (None, None),
    ]


def test_processes_that_torchrun_starts_again_resume(
    uninterrupted: Callable[[str], RankedSessions], tmp_path: Path
) -> None:
    whole, killed = uninterrupted("free_ema"), session_in(tmp_path / "killed", FREE)
    codes = killed.run("train", "spec.yaml", "--quiet", plans={1: Plan(("step",), 6)})
    assert codes == [STOPPED, KILLED]
    assert killed.run("train", "spec.yaml", "--quiet", restarts=1) == [0, 0]
    assert outcome(killed.folder) == outcome(whole.folder)


def test_errors_of_the_first_process_end_all(tmp_path: Path) -> None:
    sessions = session_in(tmp_path / "run")
    assert sessions.run("train", "spec.yaml", "--quiet", "train.epochs=0") == [0, 0]
    path = the_run(sessions.folder).provenance
    path.write_text(path.read_text(encoding="utf-8").replace('"digest": "', '"digest": "0'), encoding="utf-8")
    (the_run(sessions.folder).results).unlink()
    assert sessions.run("train", "spec.yaml", "--quiet", "--resume", "train.epochs=0") == [2, 2]
    assert "the data changed" in sessions.log(1).read_text(encoding="utf-8")


def test_fewer_images_than_processes_are_refused(tmp_path: Path) -> None:
    sessions = session_in(tmp_path / "run")
    words = ("train", "spec.yaml", "--quiet", "data.train_size=33")
    assert sessions.run(*words) == [2, 2]
    text = sessions.log(0).read_text(encoding="utf-8")
    assert "leave a last batch of 1, too few for 2 processes; write train.drop_last: true" in text


def test_other_commands_say_what_to_use(tmp_path: Path) -> None:
    sessions = session_in(tmp_path / "run")
    assert sessions.run("sweep", "spec.yaml") == [2, 2]
    assert "robust train --devices N" in sessions.log(0).read_text(encoding="utf-8")
    assert sessions.run("train", "spec.yaml", "seed=0,1") == [2, 2]


def test_a_loss_that_is_not_finite_ends_all(tmp_path: Path) -> None:
    sessions = session_in(tmp_path / "run", SWA)
    assert sessions.run("train", "spec.yaml", "--quiet", "train.lr=1e30", "train.weight_decay=0") == [4, 4]
    for rank in (0, 1):
        assert "the loss is not finite in epoch 1" in sessions.log(rank).read_text(encoding="utf-8")
    lines = the_run(sessions.folder).log.read_text(encoding="utf-8").splitlines()
    assert sum('"event": "failed"' in line for line in lines) == 1


def test_processes_share_an_evaluation(tmp_path: Path, trained: RunFolder) -> None:
    sessions = session_in(tmp_path)
    words = [
        "eval",
        str(trained.best),
        "--attack",
        "pgd",
        "--steps",
        "5",
        "--eps",
        "0.02",
        "--examples",
        "100",
        "--quiet",
    ]
    assert sessions.run(*words, "--store", "alone", count=1) == [0]
    assert sessions.run(*words, "--store", "shared") == [0, 0]
    found = [read_json(next(tmp_path.glob(f"{store}/*/results.json"))) for store in ("alone", "shared")]
    survivors = [[result["survivors"] for result in one["evaluations"].values()] for one in found]
    assert survivors[0] == survivors[1]
    assert set(survivors[0][0]) == {"0", "1"}
    (path,) = tmp_path.glob("shared/*/results.json")
    before = path.stat().st_mtime_ns
    assert sessions.run(*words, "--store", "shared", "--fresh") == [0, 0]
    assert path.stat().st_mtime_ns > before
    assert [result["survivors"] for result in read_json(path)["evaluations"].values()] == survivors[0]
