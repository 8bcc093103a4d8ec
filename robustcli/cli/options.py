"""Options that several commands share or that `robust eval` has, and printing: tables and JSON."""

import json
import os
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from robustcli.cli.torchrun import is_silent
from robustcli.errors import RobustCliError
from robustcli.registry.types import Norm

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from robustcli.specs.spec import ExperimentSpec
    from robustcli.store.results import Results

# Letters of a text in the narrowest column.
_FOLDED = 7

FailOn = Annotated[
    Literal["suspect"] | None,
    typer.Option("--fail-on", help="Exit with code 1 if an evaluation has this verdict."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Values to change in the spec, for example train.epochs=30 seed=1."),
]
Changes = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Values to change, for example data.root=PATH.")
]
Runs = Annotated[Path, typer.Option("--runs", help="Folder that holds all runs.")]
Checkpoint = Annotated[str | None, typer.Option(help="Checkpoint, if it has moved.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only results, no progress.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Wide = Annotated[bool, typer.Option("--wide", help="Show more columns.")]


# Shared by `eval` and `diagnose`: network, images and threat model.
Subject = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="Run folder or checkpoint, weights file (with --architecture), TorchScript file, robustbench:NAME, "
        "hf:ORG/REPO/FILE, timm:NAME or torchvision:NAME.",
    ),
]
Architecture = Annotated[
    str | None,
    typer.Option(
        "--architecture",
        "--arch",
        help="Architecture of a weights file saved by another program: see `robust list architectures`, or timm:NAME.",
    ),
]
Model = Annotated[
    str | None, typer.Option(help="Function that builds the network: path/file.py:function or package.module:function.")
]
WeightsFile = Annotated[
    str | None,
    typer.Option(
        help="Weights for --model or for a name such as timm:NAME: a file, or the name of torchvision weights."
    ),
]
WeightsKey = Annotated[str | None, typer.Option(help="Key of the weights in a file that holds several objects.")]
Mean = Annotated[
    str | None, typer.Option(help="Mean of the input normalization of an external network, for example 0.49,0.48,0.45.")
]
Std = Annotated[
    str | None, typer.Option(help="Standard deviation of the input normalization; `--mean 0 --std 1` for none.")
]
Preprocess = Annotated[
    str | None,
    typer.Option(
        help="Transformation of the images before the network, such as jpeg: see `robust list preprocessors`; settings "
        "as preprocess.quality=50."
    ),
]
Eps = Annotated[
    str | None, typer.Option(help="Radius of the threat model, for example 8/255. Default: the value in the spec.")
]
NormOption = Annotated[
    Norm | None, typer.Option(case_sensitive=False, help="Norm of the threat model. Default: the norm in the spec.")
]
Examples = Annotated[int | None, typer.Option("--examples", "-n", min=1, help="Use only the first N test images.")]
Images = Annotated[str | None, typer.Option(help="Data set, .npz file or folder of images: NAME, NAME:PATH or PATH.")]
Seed = Annotated[
    int | None, typer.Option(min=0, help="Seed for the attack's random noise. Default: the seed in the spec.")
]


def a_file(option: typer.CallbackParam, path: Path | None) -> Path | None:
    """Refuse a folder as the file to write, before the work starts."""
    if path is not None and path.is_dir():
        raise RobustCliError(f"{option.opts[0]}: {path}: is a folder; expected a file")
    return path


Out = Annotated[Path | None, typer.Option(callback=a_file, help="Also write the results to this JSON file.")]
Device = Annotated[str, typer.Option(help="Device: auto, cpu, cuda or cuda:i.")]

# Options of `eval`: models, attack and how it is run.
Models = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL|KEY=VALUE",
        help="More models, for a table; and values to change, for example data.root=PATH or architecture.width=32. "
        "'robustbench:cifar10/Linf/*' names all models that match.",
    ),
]
Attack = Annotated[
    str | None,
    typer.Option(
        help="Evaluator, attack or evaluation of the spec to run; several with commas give a table. Default: every "
        "evaluation of the spec, or clean and autoattack without a spec."
    ),
]
Steps = Annotated[int | None, typer.Option(help="Gradient steps of the attack.")]
Restarts = Annotated[int | None, typer.Option(help="Independent restarts of the attack.")]
StepSize = Annotated[str | None, typer.Option(help="Step size of the attack, for example 2/255.")]
Loss = Annotated[str | None, typer.Option(help="Loss that the attack maximizes.")]
Source = Annotated[
    str | None, typer.Option(help="Another network to craft the examples on (transfer attack): checkpoint or name.")
]
AttackFrom = Annotated[
    Path | None,
    typer.Option(help=".npz file with x_adv, labels and indices: evaluate examples that were made elsewhere."),
]
Transfer = Annotated[
    bool,
    typer.Option(
        "--transfer",
        help="Also evaluate every model on the examples crafted on every other model. "
        "With --architecture also give --mean and --std.",
    ),
]
Passes = Annotated[
    str | None,
    typer.Option(
        help="Passes that each attack may spend on an image: forwards=N, gradients=N or passes=N (both). Sets the "
        "steps or queries of the attack."
    ),
]
Version = Annotated[str | None, typer.Option(help="AutoAttack: version, one of standard, plus, rand.")]
Attacks = Annotated[
    str | None, typer.Option(help="AutoAttack: attacks to run instead of the version's, for example apgd-ce,fab-t.")
]
Implementation = Annotated[
    str | None, typer.Option(help="AutoAttack: implementation, native or reference (the authors' package).")
]
SearchPrecision = Annotated[
    str | None,
    typer.Option(
        help="AutoAttack: precision of the search, fp32, fast (bf16), or auto (fast where the device has it)."
    ),
]
Compile = Annotated[
    bool, typer.Option("--compile", help="AutoAttack: compile the search; worthwhile in long evaluations.")
]
SampleFirst = Annotated[
    int | None,
    typer.Option(
        "--sample-first",
        "--screen",
        min=1,
        help="AutoAttack: FAB and Square attack this many surviving images first, and the others only if one of them "
        "breaks.",
    ),
]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Images per batch.")]
Store = Annotated[Path, typer.Option(help="Folder for results; unfinished evaluations are resumed.")]
Workers = Annotated[
    int, typer.Option(min=1, max=1024, help="Number of processes; they are assigned to the GPUs in turn.")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Compute stored results again.")]
SaveExamples = Annotated[
    bool, typer.Option("--save-examples", "--witnesses", help="Keep the adversarial images, for `robust verify`.")
]

Plot = Annotated[bool, typer.Option("--plot", help="Keep the adversarial images and draw some into examples.png.")]
Preset = Annotated[
    str | None,
    typer.Option(help="Evaluation by name, such as robustbench-cifar10-linf: see `robust list presets`; or a file."),
]


def print_json(value: Any) -> None:
    """Print plain data as indented JSON."""
    typer.echo(json.dumps(value, indent=2))


def print_warnings(spec: "ExperimentSpec", where: str = "") -> None:
    """Print the warnings of a spec, once for all processes of torchrun."""
    for warning in () if is_silent() else spec.warnings():
        typer.echo(f"warning: {where}{warning}", err=True)


def print_results(title: str, results: "Results", *, is_wide: bool = False) -> None:
    """Print results as a table, and what a reader of its numbers must know."""
    from robustcli.evaluation.wording import warning_lines
    from robustcli.reports.results import result_table

    typer.echo(title)
    console().print(result_table(results, is_wide=is_wide))
    for line in (*results.notes, *warning_lines(results.evaluations)):
        typer.echo(f"note: {line}")


def _least_width(screen: "Console", table: "Table") -> int:
    """Width of a table whose numbers are whole and whose texts are folded as far as they can be read."""
    narrow = copy(table)
    narrow.columns = [one if one.no_wrap else replace(one, max_width=_FOLDED) for one in table.columns]
    return screen.measure(narrow, options=screen.options.update(width=10_000)).maximum


def console() -> "Console":
    """Return the console for tables, which prints names with brackets as they are.

    A table that does not fit has lines that are longer than the terminal is wide, because rich would leave out columns.
    """
    from rich.console import Console
    from rich.table import Table

    class Tables(Console):
        def print(self, *objects: Any, **options: Any) -> None:
            before = self.width
            self.width = max([before, *(_least_width(self, part) for part in objects if isinstance(part, Table))])
            super().print(*objects, **options)
            self.width = before

    # Wide if it is not a terminal and COLUMNS is not set, so that tables in logs and pipes are not wrapped.
    screen = Tables(markup=False)
    return screen if screen.is_terminal or "COLUMNS" in os.environ else Tables(width=200, markup=False)
