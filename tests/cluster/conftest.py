"""A real SLURM with preemption by partition and two nodes on this machine."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Programs of Debian's packages slurmctld, slurmd, slurm-client and munge.
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "srun")
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=20
MpiDefault=none
ReturnToService=2
SlurmctldPort={ports[0]}
NodeName={host} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus} State=UNKNOWN
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
"""
SWEEP = """\
# Rows that take seconds; the second one is long enough to be interrupted.
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
  long: {train: {epochs: 300}}
"""
# The second row as a spec.
SPEC = """\
name: long
data: {name: digits, val_size: 50, train_size: 64}
architecture: {name: small_cnn, width: 4, hidden: 16}
threat: {norm: linf, eps: 0.1}
defense: {name: pgd_at, steps: 2}
train: {epochs: 300, batch_size: 32, lr: 1e-2, optimizer: adam, check_examples: 20, check_steps: 2, device: cpu}
evaluate:
  clean: {name: clean, examples: 40}
"""


@dataclass
class Cluster:
    """Runs commands in a folder that all machines of a cluster share.

    Args:
        environment: environment variables of the commands.
        started: processes that may still run.
    """

    folder: Path
    environment: dict[str, str]
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *words: object) -> "subprocess.Popen[str]":
        """Start `robust`."""
        pipe = subprocess.PIPE
        command = [sys.executable, "-m", "robustcli", *map(str, words)]
        process = subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=pipe, stderr=pipe, text=True)
        self.started.append(process)
        return process

    def robust(self, *words: object, code: int = 0) -> str:
        """Standard output of `robust`, which must end with an exit code."""
        return ended(self.start(*words), code)[0]

    def slurm(self, *words: str) -> str:
        """Standard output of a command of SLURM."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, check=True, timeout=60)
        return done.stdout

    def is_queued(self, job: str) -> bool:
        return job in self.slurm("squeue", "--noheader", "--format=%i").split()

    def preempt(self) -> None:
        """Let a job of higher priority take both nodes."""
        self.slurm("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")

    def restart(self, job: str) -> None:
        """Start a requeued job now; SLURM would wait for two minutes.

        Within the same second, SLURM would take the job's new credential for the revoked one.
        """
        wait(lambda: self.slurm("squeue", "--noheader", f"--jobs={job}", "--format=%t").strip() == "PD")
        time.sleep(3)
        self.slurm("scontrol", "update", f"JobId={job}", "StartTime=now")


def ended(process: "subprocess.Popen[str]", code: int = 0) -> tuple[str, str]:
    """Output of a process, which must end with an exit code and without a traceback."""
    out, err = process.communicate(timeout=400)
    assert process.returncode == code, f"exit code {process.returncode}\n{out}\n{err}"
    assert "Traceback" not in out + err, err
    return out, err


def wait(condition: Callable[[], object], seconds: float = 240) -> None:
    """Wait until a condition holds; fail after some seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not true after {seconds} s"
        time.sleep(0.3)


def epochs(log: Path) -> int:
    """Number of lines of a train.jsonl."""
    return log.read_bytes().count(b"\n") if log.exists() else 0


def environment() -> dict[str, str]:
    """One thread, and the checkout to import from whether or not it is installed.

    Ray gives its tasks low priority, which takes long on a busy machine.
    """
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "RAY_worker_niceness": "0"}


@pytest.fixture(scope="session")
def slurm_configuration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The configuration of a SLURM that runs on this machine until the tests end."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and SLURM; missing: {', '.join(missing) or 'root'}")
    pytest.importorskip("submitit")
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "state").mkdir()
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o400)
    host = socket.gethostname().split(".")[0]
    path = folder / "slurm.conf"
    ports = [_free_port() for _ in range(3)]
    path.write_text(CONFIGURATION.format(host=host, folder=folder, ports=ports, cpus=os.cpu_count()))
    munged = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={folder}/key"]
    munged += [f"--{name}={folder}/munged.{name.split('-')[0]}" for name in ("pid-file", "log-file", "seed-file")]
    path_of_daemons = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin"}
    commands: list[Sequence[str]] = [munged, ["slurmctld", "-D", "-f", str(path)]]
    commands += [["slurmd", "-D", "-N", name, "-f", str(path)] for name in (host, "localhost")]
    quiet = subprocess.DEVNULL
    daemons = []
    try:
        for command in commands:
            daemons.append(subprocess.Popen(command, env=path_of_daemons, stdout=quiet, stderr=quiet))
            time.sleep(1)
        cluster = Cluster(folder, {**os.environ, "SLURM_CONF": str(path)})
        wait(
            lambda: "idle" in subprocess.run(["sinfo"], env=cluster.environment, capture_output=True, text=True).stdout
        )
        yield path
        cluster.slurm("scancel", "--user=root")
        wait(lambda: not cluster.slurm("squeue", "--noheader"))
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(30)


def is_idle(cluster: Cluster) -> bool:
    command = ["sinfo", "--noheader", "--partition=main", "--format=%D %t"]
    done = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, check=False)
    return done.stdout == "2 idle\n"


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def slurm(slurm_configuration: Path, tmp_path: Path) -> Iterator[Cluster]:
    """A folder with a sweep and a spec, on a machine with SLURM."""
    yield from _ended(_cluster(tmp_path, {"SLURM_CONF": str(slurm_configuration)}))


@pytest.fixture
def ray_machine(tmp_path: Path) -> Iterator[Cluster]:
    """A folder with a sweep and a spec, on a machine with Ray."""
    pytest.importorskip("ray")
    yield from _ended(_cluster(tmp_path, {}))


def _cluster(folder: Path, variables: dict[str, str]) -> Cluster:
    (folder / "family.yaml").write_text(SWEEP)
    (folder / "long.yaml").write_text(SPEC)
    return Cluster(folder, {**environment(), **variables})


def _ended(cluster: Cluster) -> Iterator[Cluster]:
    yield cluster
    for process in cluster.started:
        if process.poll() is None:
            process.kill()
            process.communicate()


@dataclass(frozen=True)
class Local:
    """The local results of the sweep and of an evaluation.

    Args:
        folder: with `runs` and `evals`.
        table: of `robust sweep`.
    """

    folder: Path
    table: str


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> Local:
    """The sweep, the spec and an evaluation, run without interruption in one process each."""
    folder = tmp_path_factory.mktemp("local")
    here = _cluster(folder, {})
    table = here.robust("sweep", "family.yaml", "--quiet")
    here.robust("train", "long.yaml", "--quiet")
    here.robust(*evaluation(folder))
    return Local(folder, table)


def evaluation(trained: Path) -> list[object]:
    """Arguments of an evaluation of the long row's network."""
    (checkpoint,) = trained.glob("runs/family.long/*/checkpoints/best.pt")
    return ["eval", checkpoint, "--attack", "autoattack", "--examples", "60", "--eps", "0.02", "--device", "cpu", "-q"]
