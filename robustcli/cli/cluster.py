"""Options of engines, and the commands on SLURM jobs: `submit`, `status`, `logs`, `cancel`."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustcli.cli import panels
from robustcli.cli.options import Json, Overrides, Runs, console, print_json, print_warnings
from robustcli.errors import RobustCliError, suggest
from robustcli.specs import experiments

if TYPE_CHECKING:
    from robustcli.workflows.engines import Answer, Engine, Needs, Task

app = typer.Typer()


# Options that apply to each engine.
_ENGINES = {"local": (), "ray": ("--gpus", "--cpus"), "slurm": ("--slurm", "--time", "--gpus", "--cpus")}

EngineName = Annotated[str, typer.Option("--engine", help="Where to run: local, ray or slurm.")]
Partition = Annotated[
    str | None,
    typer.Option(
        "--slurm",
        "--partition",
        help="SLURM: partition, or a .yaml file with partition, time, gpus, cpus and nodes. Default: the cluster's "
        "default partition.",
    ),
]
TimeLimit = Annotated[
    str | None, typer.Option("--time", help="SLURM: time limit of a job, for example 12:00:00; jobs resume after it.")
]
Gpus = Annotated[
    int | None, typer.Option(min=0, help="GPUs of a job or Ray task. Default: 0 if the device is cpu, otherwise 1.")
]
Cpus = Annotated[
    int | None, typer.Option(min=1, help="Processor cores of a job or Ray task. Default: 4 for each GPU, or 1.")
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]


def engine_of(
    name: str, partition: str | None, time: str | None, gpus: int | None, cpus: int | None
) -> "tuple[Engine, Needs] | None":
    """Return the engine of the options, and the needs of each task; None means this process.

    Raises:
        RobustCliError: there is no such engine, an option does not apply to it, or a required one is missing.
    """
    if name not in _ENGINES:
        raise RobustCliError(f"--engine: there is no engine '{name}'{suggest(name, _ENGINES)}")
    for option, value in {"--slurm": partition, "--time": time, "--gpus": gpus, "--cpus": cpus}.items():
        if value is not None and option not in _ENGINES[name]:
            others = " or ".join(f"--engine {other}" for other, options in _ENGINES.items() if option in options)
            raise RobustCliError(f"{option}: not with --engine {name}; it needs {others}")
    if name == "local":
        return None
    from robustcli.workflows.engines import Needs
    from robustcli.workflows.engines.ray import RayEngine
    from robustcli.workflows.engines.slurm import SlurmEngine

    if name == "ray":
        return RayEngine(), Needs(gpus=gpus, cpus=cpus)
    wanted = SlurmOptions(partition=partition, time=time, gpus=gpus, cpus=cpus).with_file()
    if wanted.time is None:
        raise RobustCliError("--engine slurm: found no time limit; pass --time, for example --time 12:00:00")
    if wanted.nodes is not None:
        raise RobustCliError(f"--slurm: {partition}: nodes: only robust submit takes a number of nodes; remove it")
    return SlurmEngine(partition=wanted.partition, time=wanted.time), Needs(gpus=wanted.gpus, cpus=wanted.cpus)


@dataclass(frozen=True, kw_only=True)
class SlurmOptions:
    """Options of a job; None if they are not given. The partition may be a file with all of them."""

    partition: str | None = None
    time: str | None = None
    gpus: int | None = None
    cpus: int | None = None
    nodes: int | None = None

    def with_file(self) -> "SlurmOptions":
        """Return the options; what is not given comes from the file that --slurm names, if it names one.

        Raises:
            RobustCliError: the file cannot be read, or a setting in it is wrong.
        """
        path = Path(self.partition or "")
        if path.suffix not in (".yaml", ".yml"):
            return self
        from robustcli.specs.yamlfile import read_yaml

        found = read_yaml(path).value
        kinds = {field.name: str if field.name in ("partition", "time") else int for field in fields(self)}
        if not isinstance(found, dict):
            raise RobustCliError(f"--slurm: {path}: expected some of the keys {', '.join(kinds)}")
        for key, value in found.items():
            if key not in kinds:
                raise RobustCliError(f"--slurm: {path}: unknown key '{key}'{suggest(str(key), kinds)}")
            is_sound = type(value) is kinds[key] and (not isinstance(value, int) or value >= (key != "gpus"))
            if not is_sound:
                kind = "text in quotes" if kinds[key] is str else "a number"
                raise RobustCliError(f"--slurm: {path}: {key}: found {value!r}; expected {kind}")
        given = {key: value for key, value in vars(self).items() if value is not None and key != "partition"}
        return SlurmOptions(**{**found, **given})


def print_end(task: "Task", answer: "Answer") -> None:
    """Print that a task has ended."""
    typer.echo(f"{task.name}: {'done' if answer.error is None else answer.error}", err=True)


@app.command("submit", rich_help_panel=panels.CLUSTER)
def submit_run(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="File of a spec, or name of a shipped one.")],
    overrides: Overrides = None,
    time: Annotated[
        str | None, typer.Option(help="Time limit, for example 12:00:00; the job is queued again after it.")
    ] = None,
    partition: Partition = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            min=0, help="GPUs of every node, each with a process. Default: 0 if the device is cpu, otherwise 1."
        ),
    ] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Number of nodes. Default: 1.")] = None,
    cpus: Annotated[
        int | None, typer.Option(min=1, help="Processor cores of every node. Default: 4 for each GPU, or 1.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the batch script; submit nothing.")] = False,
    runs: Runs = Path("runs"),
) -> None:
    """Train a spec as a SLURM job.

    The batch script is in the folder of the run. When the job is preempted or reaches its time limit, it saves a
    checkpoint, is queued again and resumes. SLURM also takes options from the environment, such as SBATCH_ACCOUNT.
    """
    from robustcli.specs.spec import ExperimentSpec
    from robustcli.workflows.engines import Needs
    from robustcli.workflows.slurm import Resources, script, submit

    wanted = SlurmOptions(partition=partition, time=time, gpus=gpus, cpus=cpus, nodes=nodes).with_file()
    if wanted.time is None:
        raise RobustCliError("--time: found no time limit; write --time 12:00:00, or time: in a file of --slurm")
    read = ExperimentSpec.read(experiments.find(spec), overrides or ())
    print_warnings(read)
    needs = Needs(gpus=wanted.gpus, cpus=wanted.cpus).on(read.train.device)
    resources = Resources(partition=wanted.partition, time=wanted.time, nodes=wanted.nodes or 1, **needs)
    if dry_run:
        typer.echo(script(read, runs, resources), nl=False)
        return
    folder, job = submit(read, runs, resources)
    typer.echo(f"job {job.id}: {folder}")


@app.command("status", rich_help_panel=panels.CLUSTER)
def list_jobs(runs: Runs = Path("runs"), as_json: Json = False) -> None:
    """List the runs for which a SLURM job was submitted, with the state of the job."""
    from rich.table import Table

    from robustcli.workflows.slurm import statuses

    if runs.exists() and not runs.is_dir():
        raise RobustCliError(f"--runs: {runs}: found a file; expected a folder")
    found = statuses(runs)
    if as_json:
        rows = [
            {
                "run": str(row.run),
                "job": row.job.id,
                "state": row.queued and row.queued.state,
                "elapsed": row.queued and row.queued.elapsed,
                "place": row.queued and row.queued.place,
                "status": row.status,
            }
            for row in found
        ]
        print_json(rows)
        return
    if not found:
        typer.echo(f"{runs}: no run has a job; robust submit SPEC --time TIME submits one")
        return
    table = Table("run", "job", "state", "time", "node or reason", "run's status")
    for row in found:
        queued = ("ended", "", "") if row.queued is None else (row.queued.state, row.queued.elapsed, row.queued.place)
        table.add_row(str(row.run), row.job.id, *queued, row.status)
    console().print(table)


@app.command("logs", rich_help_panel=panels.CLUSTER)
def print_log(
    run: Run,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print new lines until the job ends.")] = False,
) -> None:
    """Print the log of a run's SLURM job."""
    from robustcli.workflows.slurm import log_of

    for text in log_of(run, follow=follow):
        typer.echo(text, nl=False)


@app.command("cancel", rich_help_panel=panels.CLUSTER)
def cancel_run(run: Run) -> None:
    """Cancel the SLURM job of a run, which saves a checkpoint; `robust submit` resumes it."""
    from robustcli.workflows.slurm import cancel

    typer.echo(f"job {cancel(run).id}: canceled")
