"""Commands that train: `train`, `reproduce` and `demo`. torch is imported inside them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustcli.cli import panels, sweep
from robustcli.cli.options import FailOn, Overrides, Quiet, Runs, print_results, print_warnings
from robustcli.cli.reproduce import print_agreement, print_claim, reproduce_finding, specs_of_seeds
from robustcli.cli.torchrun import is_silent, refuse_torchrun
from robustcli.cli.verdicts import require
from robustcli.errors import RobustCliError
from robustcli.specs import experiments

if TYPE_CHECKING:
    from robustcli.specs.spec import ExperimentSpec
    from robustcli.store.results import RunResults

app = typer.Typer()


@app.command(rich_help_panel=panels.EXPERIMENTS)
def train(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="File of a spec, or name of a shipped one.")],
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume an interrupted run, or continue one with more epochs.")
    ] = False,
    runs: Runs = Path("runs"),
    quiet: Quiet = False,
    devices: Annotated[
        int, typer.Option(min=1, help="Number of GPUs, or of processes on a CPU, that share every batch.")
    ] = 1,
) -> None:
    """Train and evaluate the model that a spec describes.

    The results are printed, also those of a run that was finished earlier, which is not repeated.

    Several values make a grid: `robust train SPEC seed=0,1,2 defense.beta=1,3` trains six runs, one after the other,
    and prints one table; the same command again resumes it.
    """
    from robustcli.specs.grid import read_grid
    from robustcli.workflows.sweep_spec import Sweep, is_sweep

    path = experiments.find(spec)
    if read_grid(overrides or ()).is_grid and not is_sweep(path):
        refuse_torchrun("sweep")
        if devices > 1:
            raise RobustCliError("--devices: for one run at a time, and these values make a grid; write one value each")
        sweep.run_sweep(Sweep.read(path, overrides or ()), runs, quiet=quiet)
        return
    from robustcli.workflows.resuming import prepare_to_resume

    read = _read(spec, overrides)
    # Once for all processes: it may copy a shorter run.
    if resume and not is_silent() and (text := prepare_to_resume(runs, read)):
        typer.echo(f"note: {text}", err=True)
    if devices > 1:
        from robustcli.evaluation.workers import require_processors

        require_processors("--devices", devices, read.train.device)
        _launch(["train", spec, *(overrides or []), "--runs", str(runs)], devices, resume=resume, quiet=quiet)
    _run(read, runs, quiet, resume=resume)


def _launch(words: list[str], devices: int, *, resume: bool, quiet: bool) -> None:
    """Run a command in several processes, and end with their exit code."""
    from robustcli.runtime.launch import launch
    from robustcli.runtime.ranks import share_of_torchrun

    if share_of_torchrun() is not None:
        raise RobustCliError("--devices: torchrun has started the processes; leave it out")
    words = [*words, *(["--resume"] if resume else []), *(["--quiet"] if quiet else [])]
    raise typer.Exit(launch(words, devices))


@app.command(rich_help_panel=panels.EXPERIMENTS)
def reproduce(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Shipped experiment or finding; see `robust list experiments`.")
    ],
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    out: Annotated[Path | None, typer.Option(help="Write the result of a finding to this JSON file.")] = None,
    fail_on: FailOn = None,
    quiet: Quiet = False,
) -> None:
    """Train and evaluate a shipped experiment, or resume it, and compare with the published result.

    With several seeds, such as seed=0,1,2, the mean over the seeds is compared, and their spread is printed.

    For a finding, run every arm with every seed and print whether the claim is SHOWN, NOT SHOWN or REFUTED.
    """
    from robustcli.workflows.sweep_spec import is_sweep

    path = experiments.find(name)
    if is_sweep(path):
        refuse_torchrun("sweep")
        reproduce_finding(path, overrides or (), runs, out, quiet=quiet)
        return
    from robustcli.store.runs import folder_of

    if out is not None:
        raise RobustCliError(f"--out: {name} is not a finding; its results are in the folder of the run")
    specs = specs_of_seeds(path, overrides or ())
    found = []
    for spec in specs:
        found.append(_run(spec, runs, quiet, resume=True))
        seconds = sum(record.seconds for record in folder_of(runs, spec).epochs())
        typer.echo(f"training took {seconds:.1f} s, without checks")
    print_claim(specs[0], found)
    require(fail_on, [one for results in found for one in results.evaluations.items()])


@app.command(rich_help_panel=panels.EXPERIMENTS)
def demo(runs: Runs = Path("runs"), quiet: Quiet = False) -> None:
    """Train a natural and a robust model on the embedded digits, attack both, and check the numbers of the README."""
    from robustcli.workflows.demo import SPECS, agreements, one_thread

    with one_thread():
        found = [one for name in SPECS for one in agreements(_run(_read(name, []), runs, quiet, resume=True))]
    print_agreement(found)


def _read(name: str, overrides: list[str] | None) -> "ExperimentSpec":
    from robustcli.specs.spec import ExperimentSpec

    spec = ExperimentSpec.read(experiments.find(name), overrides or ())
    print_warnings(spec)
    return spec


def _run(spec: "ExperimentSpec", runs: Path, quiet: bool, *, resume: bool) -> "RunResults":
    from robustcli.cli.progress import Screen
    from robustcli.store.results import read_run_results
    from robustcli.store.runs import folder_of
    from robustcli.workflows.train import run_experiment

    if folder_of(runs, spec).is_finished and not (quiet or is_silent()):
        typer.echo(
            "note: this run was finished earlier; nothing is trained, and its stored results are printed", err=True
        )
    with Screen(is_quiet=quiet or is_silent()) as screen:
        folder = run_experiment(spec, runs, screen, resume=resume)
    if is_silent():
        raise typer.Exit
    found = read_run_results(folder.results)
    print_results(f"{spec.name}, seed {spec.seed}: {found.status}", found)
    derived = f"\nthe network that was found: robust train {folder.derived}" if folder.derived.exists() else ""
    typer.echo(f"stored in {folder.path}{derived}")
    return found
