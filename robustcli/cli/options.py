"""What commands share: options that mean the same everywhere, and the console that tables go to."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


class NormName(StrEnum):
    """Norms by name."""

    linf = "linf"
    l2 = "l2"
    l1 = "l1"


Overrides = Annotated[list[str] | None, typer.Argument(help="Dotted overrides, such as train.epochs=30 seed=1.")]
Runs = Annotated[Path, typer.Option("--runs", help="Folder of all runs.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only results.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


# What `eval` and `diagnose` both ask: which network, which images, which threat.
Subject = Annotated[
    str | None,
    typer.Argument(
        help="best.pt or last.pt of a run, weights with --architecture, a TorchScript file, torchvision:NAME or "
        "timm:NAME."
    ),
]
Architecture = Annotated[
    str | None, typer.Option(help="Of weights that another program saved; see `robust list architectures`.")
]
Model = Annotated[
    str | None, typer.Option(help="path/file.py:function or package.module:function, which returns an nn.Module.")
]
WeightsFile = Annotated[
    str | None,
    typer.Option(help="A file of weights for --model or a zoo's network, or torchvision's name of some."),
]
WeightsKey = Annotated[str | None, typer.Option(help="Which weights of a file that holds several.")]
Mean = Annotated[
    str | None, typer.Option(help="Of the normalisation before a network from elsewhere, such as 0.49,0.48,0.45.")
]
Std = Annotated[str | None, typer.Option(help="Likewise; 1 with --mean 0 is none.")]
Eps = Annotated[
    str | None, typer.Option(help="Radius, such as 8/255; the spec's if left out, needed where there is none.")
]
NormOption = Annotated[NormName | None, typer.Option(help="Norm; the spec's if left out.")]
Examples = Annotated[int | None, typer.Option(min=1, help="The first so many test images.")]
Images = Annotated[str | None, typer.Option(help="A data set's name, an .npz file or a folder of images.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Of the attack's noise; the spec's if left out.")]
Out = Annotated[Path | None, typer.Option(help="Also write the JSON to this file.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:i.")]


def console() -> Console:
    """Where tables are printed."""
    # Wide when not a terminal, so that tables in logs and pipes are not cut.
    screen = Console()
    return screen if screen.is_terminal else Console(width=200)
