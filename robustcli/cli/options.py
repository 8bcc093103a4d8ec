"""Options that several commands share, and the console for tables."""

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console


class NormName(StrEnum):
    """Norms by name."""

    linf = "linf"
    l2 = "l2"
    l1 = "l1"


class FailOnName(StrEnum):
    """Verdicts that may end a command with exit code 1."""

    suspect = "suspect"


FailOn = Annotated[
    FailOnName | None, typer.Option("--fail-on", help="Exit with code 1 if an evaluation has this verdict.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Values to change in the spec, for example train.epochs=30 seed=1.")
]
Runs = Annotated[Path, typer.Option("--runs", help="Folder that holds all runs.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only results, no progress.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Wide = Annotated[bool, typer.Option("--wide", help="Show more columns.")]


# Shared by `eval` and `diagnose`: network, images and threat model.
Subject = Annotated[
    str | None,
    typer.Argument(
        help="Run folder or checkpoint, weights file (with --architecture), TorchScript file, robustbench:NAME, "
        "hf:ORG/REPO/FILE, timm:NAME or torchvision:NAME."
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
Eps = Annotated[
    str | None, typer.Option(help="Radius of the threat model, for example 8/255. Default: the value in the spec.")
]
NormOption = Annotated[NormName | None, typer.Option(help="Norm of the threat model. Default: the norm in the spec.")]
Examples = Annotated[int | None, typer.Option("--examples", "-n", min=1, help="Use only the first N test images.")]
Images = Annotated[str | None, typer.Option(help="Name of a data set, .npz file or folder of images.")]
Seed = Annotated[
    int | None, typer.Option(min=0, help="Seed for the attack's random noise. Default: the seed in the spec.")
]
Out = Annotated[Path | None, typer.Option(help="Also write the results to this JSON file.")]
Device = Annotated[str, typer.Option(help="Device: auto, cpu, cuda or cuda:i.")]


def console() -> "Console":
    """Return the console for tables."""
    from rich.console import Console

    # Wide if it is not a terminal and COLUMNS is not set, so that tables in logs and pipes are not wrapped.
    screen = Console()
    return screen if screen.is_terminal or "COLUMNS" in os.environ else Console(width=200)
