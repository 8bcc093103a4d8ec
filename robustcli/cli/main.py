"""The command line.

Commands import torch inside, because the import takes seconds, and specs, tables and members too, so that help is
printed at once.
"""

import os
import re
import shutil
import sys
import traceback
import warnings
from inspect import getdoc
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustcli import __version__
from robustcli.cli import bench, export, panels, results, sweep
from robustcli.cli.authoring import app as authoring
from robustcli.cli.cluster import app as cluster
from robustcli.cli.doctor import app as doctor
from robustcli.cli.evaluation import app as evaluation
from robustcli.cli.examples import app as examples
from robustcli.cli.explain import app as explain
from robustcli.cli.finding import reproduce_finding
from robustcli.cli.hints import usual
from robustcli.cli.inspect import app as inspect
from robustcli.cli.members import app as members
from robustcli.cli.options import FailOn, Overrides, Quiet, Runs, console, print_json
from robustcli.cli.pack import app as pack
from robustcli.cli.plan import app as forecast
from robustcli.cli.push import app as push
from robustcli.cli.reproduce import print_agreement, print_claim, specs_of_seeds
from robustcli.cli.verdicts import require
from robustcli.errors import CheckFailedError, CollapseError, Interrupted, NotFiniteError, RobustCliError, disk_message
from robustcli.specs import experiments

if TYPE_CHECKING:
    from robustcli.specs.spec import ExperimentSpec
    from robustcli.store.results import RunResults

PURPOSE = "Adversarial training and evaluation: one YAML spec in; a model, its robust accuracy and the evidence out."
EXIT_CODES = (
    "Exit codes: 0 ok, 1 a check failed, 2 bad input, 3 interrupted (can be resumed), 4 training failed, 70 internal "
    "error (please report it)."
)

app = typer.Typer(
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=f"{PURPOSE}\n\n{EXIT_CODES}",
)
for commands in (
    evaluation,
    inspect,
    results.app,
    examples,
    push,
    sweep.app,
    forecast,
    pack,
    cluster,
    members,
    explain,
    doctor,
    authoring,
):
    app.add_typer(commands)
app.add_typer(bench.app, name="bench", rich_help_panel=panels.HELP)
app.add_typer(export.app, name="export", rich_help_panel=panels.RESULTS)


def main() -> None:
    """Run a command; errors in the input become one message and an exit code."""
    # Waiting threads that spin slow each other down on shared cores. Set here, because torch reads it at import.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    warnings.formatwarning = _in_words
    if _is_silent():
        warnings.simplefilter("ignore")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # Also print names that are not UTF-8.
            stream.reconfigure(errors="backslashreplace")
    try:
        _require_text(sys.argv[1:])
        _join_lines(app)
        app(args=usual(sys.argv[1:]))
    except Interrupted as stopped:
        typer.echo(f"{_which_process()}{stopped}{_how_to_resume(sys.argv[1:])}", err=True)
        sys.exit(3)
    except (CollapseError, NotFiniteError) as failure:
        typer.echo(f"{_which_process()}training failed: {failure}", err=True)
        sys.exit(4)
    except CheckFailedError as failure:
        typer.echo(f"failed: {failure}", err=True)
        sys.exit(1)
    except RobustCliError as error:
        typer.echo(f"{_which_process()}error: {error}", err=True)
        sys.exit(2)
    except OSError as error:
        typer.echo(f"{_which_process()}error: {disk_message(error)}", err=True)
        sys.exit(2)
    except Exception as error:
        if (reason := _memory_message(error)) is not None:
            typer.echo(f"{_which_process()}error: {reason}", err=True)
            sys.exit(2)
        traceback.print_exc()
        typer.echo("internal error: please report it with the lines above", err=True)
        sys.exit(70)


def _memory_message(error: Exception) -> str | None:
    """Return a message for a failed allocation on a GPU or the CPU; None for other errors."""
    if not isinstance(error, RuntimeError | MemoryError):
        return None
    from robustcli.measuring.memory import is_out_of_memory

    if not is_out_of_memory(error):
        return None
    reason = (str(error).splitlines() or ["no further reason given"])[0]
    return (
        f"out of memory ({reason}); use a smaller batch (train.batch_size=N, --batch-size N), a smaller network or "
        "precision bf16; `robust plan` estimates the memory of a spec. What was finished is kept"
    )


# Commands whose work the processes of torchrun share.
_SHARED = ("train", "reproduce", "eval")


def _is_silent() -> bool:
    """Return True in every process of torchrun but the first, which prints for all."""
    is_one = os.environ.get("WORLD_SIZE", "") in ("", "1")
    return not is_one and os.environ.get("RANK", "") not in ("", "0")


def _which_process() -> str:
    """Prefix of error messages of a process that is not the first one."""
    return f"process {os.environ['RANK']}: " if _is_silent() else ""


def _refuse_torchrun(command: str) -> None:
    """Raise for commands that several processes would only repeat."""
    if command in _SHARED or os.environ.get("WORLD_SIZE", "") in ("", "1"):
        return
    from robustcli.runtime.ranks import share_of_torchrun

    if share_of_torchrun() is not None:
        instead = (
            "start it in as many processes as you like, which share its rows, or train one row with robust train "
            "--devices N"
            if command == "sweep"
            else "start it once"
        )
        raise RobustCliError(f"robust {command}: torchrun is for {', '.join(_SHARED)}; {instead}")


def _join_lines(group: typer.Typer) -> None:
    """Join the lines of paragraphs in help texts, which typer would print as they are in the docstring."""
    for command in group.registered_commands:
        command.help = re.sub(r"(?<!\n)\n(?!\n)", " ", command.help or getdoc(command.callback) or "") or None
    for inner in group.registered_groups:
        if inner.typer_instance is not None:
            _join_lines(inner.typer_instance)


def _require_text(words: list[str]) -> None:
    """Raise for paths that are not UTF-8, because specs and results store paths as text."""
    for word in words:
        if not word.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in word):
            shown = word.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            raise RobustCliError(f"'{shown}': not UTF-8; rename it, or use a link with another name")


def _how_to_resume(words: list[str]) -> str:
    """Advice for resuming an interrupted command; empty if it cannot be resumed."""
    command = words[0] if words else ""
    if command == "train":
        return "; continue with --resume"
    return "; run the same command again to resume" if command in ("reproduce", "demo", "sweep", "eval") else ""


def _in_words(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Format a warning; with its place only if it is about code."""
    if issubclass(category, DeprecationWarning | FutureWarning):
        return f"{filename}:{lineno}: {category.__name__}: {message}\n"
    return f"warning: {message}\n"


def _version(shown: bool) -> None:
    if shown:
        typer.echo(f"robust {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
    else:
        _refuse_torchrun(context.invoked_subcommand)


@app.command(rich_help_panel=panels.EXPERIMENTS)
def train(
    spec: Annotated[str, typer.Argument(help="File of a spec, or name of a shipped one.")],
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

    Several values make a grid: `robust train SPEC seed=0,1,2 defense.beta=1,3` trains six runs, one after the other,
    and prints one table; the same command again resumes it.
    """
    from robustcli.specs.grid import read_grid
    from robustcli.workflows.sweep_spec import Sweep, is_sweep

    path = experiments.find(spec)
    if read_grid(overrides or ()).is_grid and not is_sweep(path):
        _refuse_torchrun("sweep")
        if devices > 1:
            raise RobustCliError("--devices: for one run at a time, and these values make a grid; write one value each")
        sweep.run_sweep(Sweep.read(path, overrides or ()), runs, quiet=quiet)
        return
    from robustcli.workflows.resuming import prepare_to_resume

    read = _read(spec, overrides)
    # Once for all processes: it may copy a shorter run.
    if resume and not _is_silent() and (text := prepare_to_resume(runs, read)):
        typer.echo(f"note: {text}", err=True)
    if devices > 1:
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
    name: Annotated[str, typer.Argument(help="Shipped experiment or finding; see `robust list experiments`.")],
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    out: Annotated[Path | None, typer.Option(help="Write the result of a finding to this JSON file.")] = None,
    fail_on: FailOn = None,
    quiet: Quiet = False,
) -> None:
    """Train and evaluate a shipped experiment, or resume it, and compare with the published result.

    With several seeds, such as seed=0,1,2, the mean is compared, and the noise over seeds is known.

    For a finding, run every arm with every seed and print whether the claim is SHOWN, NOT SHOWN or REFUTED.
    """
    from robustcli.workflows.sweep_spec import is_sweep

    path = experiments.find(name)
    if is_sweep(path):
        _refuse_torchrun("sweep")
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


@app.command(rich_help_panel=panels.EXPERIMENTS)
def validate(
    specs: Annotated[
        list[str] | None,
        typer.Argument(help="Files or names of specs and sweeps, and values to change, for example seed=1."),
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of specs, for editors.")] = False,
) -> None:
    """Check specs and sweeps without running anything, and print every problem with its line."""
    if schema:
        from robustcli.specs.schema import json_schema

        print_json(json_schema())
        return
    if not specs:
        raise RobustCliError("no spec given; name one, or use --schema")
    overrides = [word for word in specs if "=" in word]
    failures = []
    for name in (word for word in specs if word not in overrides):
        try:
            _validate(name, overrides)
        except RobustCliError as error:
            failures.append(str(error))
    if failures:
        raise RobustCliError("\n".join(failures))


def _validate(name: str, overrides: list[str]) -> None:
    """Check one file and print its digest, warnings and notes."""
    from robustcli.specs.grid import read_grid
    from robustcli.specs.spec import ExperimentSpec
    from robustcli.workflows.sweep_spec import Sweep, is_sweep

    path = experiments.find(name)
    if is_sweep(path) or read_grid(overrides).is_grid:
        checked = Sweep.read(path, overrides)
        typer.echo(f"{name}: valid, {len(checked.rows)} rows")
        found = [(f"row {row.name}: ", row.specs[0]) for row in checked.rows]
    else:
        found = [("", ExperimentSpec.read(path, overrides))]
        typer.echo(f"{name}: valid, digest {found[0][1].digest}")
    for where, spec in found:
        for warning in spec.warnings():
            typer.echo(f"  warning: {where}{warning}")
        for note in spec.notes():
            typer.echo(f"  note: {where}{note}")


@app.command("cp", rich_help_panel=panels.EXPERIMENTS)
def copy_experiment(
    name: Annotated[str, typer.Argument(help="Shipped experiment or sweep.")],
    target: Annotated[Path, typer.Argument(help="New file, or folder for a file of the same name.")],
) -> None:
    """Copy a shipped spec to a new file."""
    source = experiments.find(name)
    if target.is_dir():
        target = target / source.name
    if target.exists():
        raise RobustCliError(f"{target}: exists already; choose another name or remove it")
    if not target.parent.is_dir():
        raise RobustCliError(f"{target}: there is no folder {target.parent}")
    shutil.copyfile(source, target)
    typer.echo(f"{target}: copied from {name}")


def _read(name: str, overrides: list[str] | None) -> "ExperimentSpec":
    from robustcli.specs.spec import ExperimentSpec

    spec = ExperimentSpec.read(experiments.find(name), overrides or ())
    for warning in () if _is_silent() else spec.warnings():
        typer.echo(f"warning: {warning}", err=True)
    return spec


def _run(spec: "ExperimentSpec", runs: Path, quiet: bool, *, resume: bool) -> "RunResults":
    from robustcli.cli.progress import Screen
    from robustcli.evaluation.wording import warning_lines
    from robustcli.reports.results import result_table
    from robustcli.store.results import read_run_results
    from robustcli.workflows.train import run_experiment

    with Screen(is_quiet=quiet or _is_silent()) as screen:
        folder = run_experiment(spec, runs, screen, resume=resume)
    if _is_silent():
        raise typer.Exit
    found = read_run_results(folder.results)
    typer.echo(f"{spec.name}, seed {spec.seed}: {found.status}")
    console().print(result_table(found))
    for line in warning_lines(found.evaluations):
        typer.echo(f"note: {line}")
    derived = f"\nthe network that was found: robust train {folder.derived}" if folder.derived.exists() else ""
    typer.echo(f"stored in {folder.path}{derived}")
    return found
