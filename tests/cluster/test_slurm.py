"""Sweeps, evaluations and runs as jobs of a real SLURM, which preempts and cancels them."""

import json
from pathlib import Path

import pytest
import same
from conftest import Cluster, Local, ended, epochs, evaluation, wait

pytestmark = pytest.mark.cluster
OPTIONS = ("--engine", "slurm", "--slurm", "main", "--time", "20")


def job_of(folder: Path) -> str:
    """Number of the job whose files are in a folder."""
    return str(json.loads((folder / "job.json").read_text())["id"])


def submitted(slurm: Cluster) -> tuple[Path, str]:
    """The folder of the long run and its job."""
    slurm.robust("submit", "long.yaml", "--slurm", "main", "--time", "20")
    (folder,) = slurm.folder.glob("runs/long/*")
    return folder, job_of(folder / "job")


def test_a_sweep_whose_job_reaches_its_time_limit_equals_the_local_one(slurm: Cluster, local: Local) -> None:
    sweep = slurm.start("sweep", "family.yaml", *OPTIONS)
    wait(lambda: [*slurm.folder.glob("runs/family.long/*/train.jsonl")])
    (log,) = slurm.folder.glob("runs/family.long/*/train.jsonl")
    wait(lambda: epochs(log) > 2)
    job = job_of(log.parent / "job")
    slurm.slurm("scancel", "--batch", "--signal=USR2", job)
    slurm.restart(job)
    before = epochs(log)
    assert 2 < before < 300
    out, err = ended(sweep)
    assert same.table(out) == same.table(local.table)
    assert same.results(slurm.folder / "runs") == {
        name: found for name, found in same.results(local.folder / "runs").items() if name.startswith("family")
    }
    assert "family.natural-s0: done" in err
    # Two sessions, and no epoch was trained twice.
    assert len(json.loads((log.parent / "provenance.json").read_text())["sessions"]) == 2
    assert epochs(log) == 300
    # Files of jobs are not part of the results.
    assert "verified: settings" in slurm.robust("verify", log.parent)
    assert same.table(slurm.robust("sweep", "family.yaml", *OPTIONS)) == same.table(local.table)
    assert job_of(log.parent / "job") == job


def test_a_run_that_is_preempted_and_reaches_its_time_limit_equals_an_unbroken_one(
    slurm: Cluster, local: Local
) -> None:
    folder, job = submitted(slurm)
    log = folder / "train.jsonl"
    wait(lambda: epochs(log) > 2)
    slurm.slurm("scancel", "--batch", "--signal=USR1", job)
    slurm.restart(job)
    first = epochs(log)
    wait(lambda: epochs(log) > first + 2)
    slurm.preempt()
    slurm.restart(job)
    assert first < epochs(log) < 300
    wait(lambda: not slurm.is_queued(job))
    assert len(json.loads((folder / "provenance.json").read_text())["sessions"]) == 3
    ours, theirs = (place.folder / "runs" / "long" for place in (slurm, local))
    assert same.results(ours) == same.results(theirs)
    assert same.weights(ours) == same.weights(theirs)
    assert "this run is finished" in ended(slurm.start("submit", "long.yaml", "--time", "20"), 2)[1]


def test_a_run_on_two_nodes_is_queued_again_and_equals_one_of_two_processes(slurm: Cluster) -> None:
    words = ("long.yaml", "train.epochs=100")
    slurm.robust("submit", *words, "--slurm", "main", "--time", "20", "--nodes", 2)
    (folder,) = slurm.folder.glob("runs/long/*")
    log, job = folder / "train.jsonl", job_of(folder / "job")
    wait(lambda: epochs(log) > 2)
    slurm.slurm("scancel", "--batch", "--signal=USR1", job)
    slurm.restart(job)
    assert 2 < epochs(log) < 100
    wait(lambda: not slurm.is_queued(job))
    slurm.robust("train", *words, "--devices", 2, "--runs", "others", "--quiet")
    ours, theirs = (slurm.folder / place / "long" for place in ("runs", "others"))
    assert same.results(ours) == same.results(theirs)
    assert same.weights(ours) == same.weights(theirs)
    sessions = json.loads((folder / "provenance.json").read_text())["sessions"]
    assert [session["processes"] for session in sessions] == [2, 2]


def test_a_job_is_listed_followed_and_canceled_with_a_checkpoint(slurm: Cluster) -> None:
    folder, job = submitted(slurm)
    follow = slurm.start("logs", folder, "-f")
    wait(lambda: epochs(folder / "train.jsonl") > 2)
    assert "epoch   1" in slurm.robust("logs", folder)
    (row,) = json.loads(slurm.robust("status", "--json"))
    assert (row["run"], row["job"], row["state"]) == (f"runs/long/{folder.name}", job, "RUNNING")
    assert "is RUNNING" in ended(slurm.start("submit", "long.yaml", "--time", "20"), 2)[1]
    assert slurm.robust("cancel", folder) == f"job {job}: canceled\n"
    wait(lambda: not slurm.is_queued(job))
    done = epochs(folder / "train.jsonl")
    (row,) = json.loads(slurm.robust("status", "--json"))
    assert (row["state"], row["status"]) == (None, f"unfinished, {done} epochs")
    assert "is not in the queue" in ended(slurm.start("cancel", folder), 2)[1]
    assert "stopped after epoch" in ended(follow)[0]


def test_an_evaluation_whose_worker_is_canceled_is_complete(slurm: Cluster, local: Local) -> None:
    words = evaluation(local.folder)
    # More workers than nodes: waiting workers are canceled when the evaluation is done.
    process = slurm.start(*words, *OPTIONS, "--workers", 4, "--cpus", 2)
    wait(lambda: [*slurm.folder.glob("evals/*/evaluations/*.journal/*.npz")])
    killed, *_ = sorted(slurm.folder.glob("evals/jobs/*/*/job.json"))
    slurm.slurm("scancel", "--signal=KILL", "--batch", job_of(killed.parent))
    ended(process)
    assert same.evaluations(slurm.folder / "evals") == same.close_to(same.evaluations(local.folder / "evals"))
    wait(lambda: not slurm.slurm("squeue", "--noheader"))
