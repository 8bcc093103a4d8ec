"""Time limits, and the batch scripts of `robust submit`."""

import pickle
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from robustcli.errors import RobustCliError
from robustcli.specs import experiments
from robustcli.specs.spec import ExperimentSpec
from robustcli.workflows.engines import Answer, Needs, Task
from robustcli.workflows.engines import slurm as slurm_engine
from robustcli.workflows.engines.slurm import SlurmEngine
from robustcli.workflows.slurm import NOTICE, Queued, Resources, WatchedQueue, minutes, script


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


@pytest.mark.parametrize("text", ["1", "4", "0:03:59"])
def test_jobs_that_would_be_stopped_at_once_again_and_again_are_refused(text: str) -> None:
    spec = ExperimentSpec.read(experiments.find("smoke/pgd_at"))
    with pytest.raises(RobustCliError, match=r"asked to stop 2 minutes before its limit.*expected at least 5 minutes"):
        script(spec, Path("runs"), Resources(partition=None, time=text))


def test_a_job_of_several_nodes_has_time_to_save_a_checkpoint() -> None:
    spec = ExperimentSpec.read(experiments.find("smoke/pgd_at"))
    text = script(spec, Path("runs"), Resources(partition=None, time="60", nodes=2))
    (line,) = (line for line in text.splitlines() if line.startswith("export TORCH_ELASTIC_SHUTDOWN_TIMEOUT"))
    assert int(line.rpartition("-")[2].rstrip("}")) > NOTICE


@dataclass
class _Unreachable:
    """A queue that first does not answer, then is empty."""

    failures: int
    calls: int = 0

    def __call__(self) -> dict[str, Queued]:
        self.calls += 1
        if 1 < self.calls <= 1 + self.failures:
            raise RobustCliError("squeue: slurm_load_jobs error: Socket timed out on send/recv operation")
        return {"7": Queued(state="RUNNING", elapsed="1:00", place="node")}


def test_jobs_are_waited_for_while_the_controller_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = tmp_path / "7_result.pkl"
    paths = SimpleNamespace(result_pickle=answer, stdout=tmp_path / "7.log")
    queue = _Unreachable(failures=3)
    monkeypatch.setattr("robustcli.workflows.engines.slurm.queue", queue)
    monkeypatch.setattr("robustcli.workflows.slurm.queue", queue)
    monkeypatch.setattr(slurm_engine, "_submitit", lambda: None)
    monkeypatch.setattr(slurm_engine, "_QUEUE_PATIENCE", -1.0)
    monkeypatch.setattr(SlurmEngine, "_submitted", lambda *_: SimpleNamespace(job_id="7", paths=paths))

    def pause(_seconds: float) -> None:
        if queue.calls > 5:
            answer.write_bytes(pickle.dumps(("success", Answer(value=3))))

    monkeypatch.setattr(time, "sleep", pause)
    task = Task(name="a", folder=tmp_path, work=print, arguments=())
    assert list(SlurmEngine(partition=None, time="60").run([task])) == [(task, Answer(value=3))]


def test_a_controller_that_does_not_answer_for_hours_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustcli.workflows.slurm.queue", _Unreachable(failures=9, calls=1))
    watched = WatchedQueue()
    assert watched.read() is None
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 4000)
    with pytest.raises(RobustCliError, match="Socket timed out"):
        watched.read()


@pytest.mark.parametrize(
    ("nodes", "gpus", "calls"),
    [
        (1, 0, ["robustcli train runs/"]),
        (1, 4, ["robustcli train runs/", "--devices 4"]),
        (
            2,
            4,
            [
                "srun --cpus-per-task=8 ",
                "torch.distributed.run --nnodes 2 --nproc-per-node 4",
                "-m robustcli train runs/",
            ],
        ),
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
