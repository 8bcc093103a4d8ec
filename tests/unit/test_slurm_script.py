"""Time limits, and the batch scripts of `robust submit`."""

import subprocess
from pathlib import Path

import pytest

from robustcli.errors import RobustCliError
from robustcli.specs import experiments
from robustcli.specs.spec import ExperimentSpec
from robustcli.workflows.engines import Needs
from robustcli.workflows.slurm import Resources, minutes, script


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90),
        ("90:30", 91),
        ("12:00:00", 720),
        ("0:00:01", 1),
        ("2-0", 2880),
        ("1-12:30", 2190),
        ("1-12:30:01", 2191),
    ],
)
def test_time_limits_are_those_of_sbatch(text: str, expected: int) -> None:
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["", "0", "12h", "1:2:3:4", "-5", "0-0", "1.5"])
def test_other_time_limits_are_refused(text: str) -> None:
    with pytest.raises(RobustCliError, match="such as 12:00:00"):
        minutes(text)


@pytest.mark.parametrize(
    ("nodes", "gpus", "calls"),
    [
        (1, 0, ["robustcli train runs/"]),
        (1, 4, ["robustcli train runs/", "--devices 4"]),
        (2, 4, ["srun ", "torch.distributed.run --nnodes 2 --nproc-per-node 4", "-m robustcli train runs/"]),
    ],
)
def test_a_script_starts_a_process_for_each_gpu_of_each_node(nodes: int, gpus: int, calls: list[str]) -> None:
    spec = ExperimentSpec.read(experiments.find("smoke/pgd_at"))
    text = script(spec, Path("runs"), Resources(partition="p", time="10", nodes=nodes, gpus=gpus, cpus=8))
    (call,) = (line for line in text.splitlines() if line.endswith("&"))
    for part in calls:
        assert part in call
    assert ("--gpus-per-node=4" in text) == (gpus > 0)
    assert f"OMP_NUM_THREADS:-{8 // max(gpus, 1)}" in text
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=True).returncode == 0


@pytest.mark.parametrize(
    ("needs", "device", "expected"),
    [
        (Needs(), "cpu", (0, 1)),
        (Needs(), "auto", (1, 4)),
        (Needs(gpus=2), "cuda", (2, 8)),
        (Needs(gpus=0, cpus=3), "auto", (0, 3)),
    ],
)
def test_a_task_gets_a_gpu_unless_it_is_on_the_cpu(needs: Needs, device: str, expected: tuple[int, int]) -> None:
    assert needs.on(device) == {"gpus": expected[0], "cpus": expected[1]}
