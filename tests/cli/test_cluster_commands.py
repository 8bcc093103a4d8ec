"""Options of engines and commands on jobs, as far as they work without a cluster."""

from pathlib import Path

import pytest
from shell import Robust

from robustcli.store.jobs import FOLDER, JobRecord, write_job
from robustcli.store.runs import RunFolder


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--engine", "slrum"), "did you mean 'slurm'?"),
        (("--time", "10"), "--time: not with --engine local; it needs --engine slurm"),
        (("--gpus", "1"), "--gpus: not with --engine local; it needs --engine ray or --engine slurm"),
        (("--engine", "ray", "--slurm", "main"), "--slurm: not with --engine ray"),
        (("--engine", "slurm"), "pass --time"),
    ],
)
def test_options_without_a_meaning_are_refused(words: tuple[str, ...], text: str, robust: Robust) -> None:
    robust("sweep", "sweeps/mnist_defenses", *words).require(2, text)
    assert not Path("runs").exists()


def test_the_former_option_of_autoattack_is_known(robust: Robust, trained: RunFolder) -> None:
    said = robust("eval", trained.best, "--attack", "clean", "--engine", "reference")
    said.require(2, "warning: --engine reference: now --implementation reference", "engine: unknown parameter")


def test_a_script_is_shown_and_nothing_is_written(robust: Robust, tiny: Path) -> None:
    said = robust("submit", tiny, "--time", "1:00:00", "--slurm", "gpu", "--dry-run").require(0)
    assert said.out.startswith("#!/bin/bash\n")
    assert "#SBATCH --time=1:00:00\n" in said.out
    assert not Path("runs").exists()
    robust("submit", tiny, "--time", "soon", "--dry-run").require(2, "'soon' is not a time limit")


def test_without_slurm_commands_say_so(robust: Robust, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    robust("status").require(0, "runs: no run has a job")
    monkeypatch.setenv("PATH", "/nowhere")
    robust("submit", tiny, "--time", "10").require(2, "sbatch: command not found")
    assert not Path("runs").exists()
    folder = Path("runs", "tiny", "1-s0")
    folder.mkdir(parents=True)
    robust("logs", folder).require(2, "no job was submitted for this run")
    write_job(folder / FOLDER, JobRecord(id="7", name="tiny", log="7.log"))
    robust("logs", folder).require(2, "there is no log yet")
    (folder / FOLDER / "7.log").write_text("epoch 1\n")
    assert robust("logs", folder).require(0).out == "epoch 1\n"
    robust("status").require(2, "squeue: command not found")
    robust("cancel", folder).require(2, "squeue: command not found")


def test_settings_of_slurm_come_from_a_file(robust: Robust, tiny: Path) -> None:
    team = tiny.with_name("team.yaml")
    team.write_text("partition: gpu\ntime: 12:00:00\ngpus: 2\nnodes: 3\n", encoding="utf-8")
    script = robust("submit", tiny, "--slurm", team, "--gpus", 4, "--dry-run").require(0).out
    for line in ("partition=gpu", "time=12:00:00", "nodes=3", "gpus-per-node=4"):
        assert f"#SBATCH --{line}\n" in script
    robust("submit", tiny, "--slurm", "gpu", "--dry-run").require(2, "--time: found no time limit")
    team.write_text("time: 90\n", encoding="utf-8")
    robust("submit", tiny, "--slurm", team, "--dry-run").require(2, "time: found 90; expected text in quotes")
    team.write_text("partitions: gpu\n", encoding="utf-8")
    robust("submit", tiny, "--slurm", team, "--dry-run").require(2, "did you mean 'partition'?")
