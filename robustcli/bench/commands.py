"""The commands below `robust bench`: parse, call, print. torch is imported inside commands."""

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from robustcli.catalog import catalog

app = typer.Typer(
    no_args_is_help=True,
    help="Measure what a step costs beside what it must cost and beside other projects, in turn in one process.",
)


class Precision(StrEnum):
    """Of the network's passes."""

    fp32 = "fp32"
    bf16 = "bf16"


@app.callback()
def _group() -> None:
    """Keeps the command's name in front of its options even while it is the only one."""


@app.command()
def train(
    architecture: Annotated[str, typer.Option(help="See `robust list architectures`.")] = "preact_resnet18",
    width: Annotated[
        int | None, typer.Option(min=1, help="Of the architecture; 16 if it has a width.", show_default=False)
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per update.")] = 128,
    rounds: Annotated[int, typer.Option(min=3, help="In each of which everything runs once.")] = 7,
    defense: Annotated[list[str] | None, typer.Option(help="May be repeated; or all. pgd_at if left out.")] = None,
    weights: Annotated[str, typer.Option(help="Weight perturbation: see `robust list weights`.")] = "none",
    channels_last: Annotated[
        bool, typer.Option("--channels-last", help="Memory format of images and weights.")
    ] = False,
    precision: Annotated[Precision, typer.Option(help="Of the network's passes.")] = Precision.fp32,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:i.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Speed of adversarial training: our update beside its passes alone and beside torchattacks' PGD.

    Random images of CIFAR-10's shape. A ratio is our speed as a multiple of the other's, taken round by round;
    a difference is called one only if it exceeds what the same step differs from itself.
    """
    from robustcli.bench.train import bench_train
    from robustcli.bench.variants import Request

    names = defense or ["pgd_at"]
    request = Request(
        defenses=tuple(catalog("defenses")) if "all" in names else tuple(dict.fromkeys(names)),
        weights=weights,
        architecture=architecture,
        width=width,
        batch_size=batch_size,
        rounds=rounds,
        precision=precision.value,
        channels_last=channels_last,
        device=device,
    )
    with Console(stderr=True).status(f"measuring {', '.join(request.defenses)} in {rounds} rounds"):
        results = bench_train(request)
    if as_json:
        typer.echo(json.dumps(results, indent=2))
        return
    console = Console()
    console = console if console.is_terminal else Console(width=160)
    for name, result in results["defenses"].items():
        console.print(_table(name, result, results["settings"]))
        console.print(_passes(result), highlight=False, markup=False)
    for line in _conditions(results):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _table(name: str, result: Mapping[str, Any], settings: Mapping[str, Any]) -> Table:
    architecture = settings["architecture"]
    parts = [
        name if settings["weights"] == "none" else f"{name} with {settings['weights']}",
        architecture["name"] + (f" width {architecture['width']}" if "width" in architecture else ""),
        f"batch {settings['batch_size']}",
        settings["precision"],
        "channels_last" if settings["channels_last"] else "plain format",
    ]
    table = Table(title=", ".join(parts), title_justify="left")
    table.add_column("")
    for column in ("images/s", "s per update", "our speed is: median (min-max)", "so ours is"):
        table.add_column(column, justify="right")
    for row in result["rows"]:
        table.add_row(
            row["name"],
            f"{row['images_per_second']:.1f}",
            f"{row['seconds']['median']:.4f}",
            _spread(row["ratio"]) if row["ratio"] else "",
            row["verdict"] or "",
        )
    return table


def _spread(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.3f} x ({ratio['low']:.3f}-{ratio['high']:.3f})"


def _passes(result: Mapping[str, Any]) -> str:
    """Counted and least passes in one line."""
    words = " ".join(f"{count:g} {kind.replace('_', ' ')}," for kind, count in result["passes"].items()).rstrip(",")
    least = result["least_passes"]
    if least is None:
        return f"passes per image: {words} (the least is not known here; those made are timed alone)"
    return (
        f"passes per image: {words} ({'the least' if least == result['passes'] else f'more than the least: {least}'})"
    )


def _conditions(results: Mapping[str, Any]) -> list[str]:
    machine, settings = results["machine"], results["settings"]
    seconds = "processor seconds" if settings["clock"] == "cpu" else "wall-clock seconds"
    return [
        f"{results['provenance']['device']}; {machine['processor']}, {machine['cores']} cores, "
        f"{machine['threads']} threads, load {machine['load']}; torch {machine['torch']}; "
        f"{settings['rounds']} rounds in alternating order; {seconds}",
        "its passes alone: the same network, precision and format, with nothing around the passes",
        "torchattacks, set as ours: same precision and format, in this process, which keeps freed memory",
        "torchattacks, as it comes: fp32 in the plain format, in a process of its own",
        *(f"note: {note}" for note in results["notes"]),
    ]
