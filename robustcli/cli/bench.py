"""The commands below `robust bench`: parse, call, print. torch is imported inside commands."""

import json
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from robustcli.cli import bench_parts as cost_commands
from robustcli.cli.bench_options import Checkpoints, Rounds, show, subjects_of
from robustcli.cli.options import Device, Eps, Images, Json, NormOption, Out, console
from robustcli.errors import RobustCliError, suggest
from robustcli.registry.catalog import catalog
from robustcli.registry.signatures import REQUIRED
from robustcli.specs.pairing import PAIRED

app = typer.Typer(
    no_args_is_help=True,
    help="Measure what a step costs beside what it must cost and beside other projects, in turn in one process.",
)
app.add_typer(cost_commands.app)


class Precision(StrEnum):
    """Of the network's passes."""

    fp32 = "fp32"
    bf16 = "bf16"


@app.command()
def train(
    architecture: Annotated[str, typer.Option(help="See `robust list architectures`.")] = "preact_resnet18",
    width: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Of the architecture; 16 if it has a width. May be repeated.", show_default=False),
    ] = None,
    batch_size: Annotated[
        list[int] | None, typer.Option(min=1, help="Images per update; 128. May be repeated.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=3, help="In each of which everything runs once.")] = 7,
    defense: Annotated[list[str] | None, typer.Option(help="May be repeated; or all that need no settings.")] = None,
    weights: Annotated[
        list[str] | None, typer.Option(help="Weight perturbation; none. See `robust list weights`. May be repeated.")
    ] = None,
    channels_last: Annotated[
        bool | None,
        typer.Option(
            "--channels-last/--plain-format", help="Memory format of images and weights; as training chooses it."
        ),
    ] = None,
    precision: Annotated[Precision, typer.Option(help="Of the network's passes.")] = Precision.fp32,
    is_compiled: Annotated[bool, typer.Option("--compile", help="Compile the network, as train.compile does.")] = False,
    device: Device = "auto",
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Speed of adversarial training: our update beside its passes alone and beside torchattacks' PGD.

    Random images of CIFAR-10's shape. A ratio is our speed as a multiple of the other's, taken round by round;
    a difference is called one only if it exceeds what the same step differs from itself. Every width is measured
    with every batch size and every weight perturbation.
    """
    from robustcli.bench.train import bench_train
    from robustcli.bench.variants import Request
    from robustcli.store.files import write_json

    names = defense or ["pgd_at"]
    widths: Sequence[int | None] = width or [None]
    requests = [
        Request(
            defenses=tuple(_trainable() if "all" in names else dict.fromkeys(names)),
            weights=perturbation,
            architecture=architecture,
            width=wide,
            batch_size=size,
            rounds=rounds,
            precision=precision.value,
            channels_last="auto" if channels_last is None else channels_last,
            is_compiled=is_compiled,
            device=device,
        )
        for wide, size, perturbation in product(widths, batch_size or [128], weights or ["none"])
    ]
    measured = []
    with Console(stderr=True).status(f"measuring {', '.join(requests[0].defenses)} in {rounds} rounds"):
        for request in requests:
            measured.append(bench_train(request))
            if out is not None:  # What is measured so far, in case the rest is not waited for.
                write_json(out, measured)
    if as_json:
        typer.echo(json.dumps(measured if len(measured) > 1 else measured[0], indent=2))
        return
    screen = console()
    for results in measured:
        for name, result in results["defenses"].items():
            screen.print(_table(name, result, results["settings"]))
            screen.print(_passes(result), highlight=False, markup=False)
    for line in _conditions(measured[-1]):
        screen.print(line, highlight=False, markup=False, soft_wrap=True)


@app.command()
def autoattack(
    checkpoints: Checkpoints,
    examples: Annotated[int, typer.Option(min=1, help="The first so many test images.")] = 200,
    rounds: Rounds = 3,
    screen: Annotated[int | None, typer.Option(min=1, help="Also with so many survivors sampled.")] = None,
    is_compiled: Annotated[bool, typer.Option("--compile", help="Also with compiled searches.")] = False,
    eps: Eps = None,
    norm: NormOption = None,
    data: Images = None,
    device: Device = "auto",
    out: Out = None,
) -> None:
    """Speed of AutoAttack: the native engine beside the package of its authors, in turn in one process.

    The package runs as its users call it. Speeds are multiples of its, taken round by round; on a CPU they are those
    of the processor time of this process. Compiling is no part of them. The limit is what survivors and broken images
    take at least, in single precision and with nothing around the passes. A difference is called one only if it
    exceeds what the native engine differs from itself.
    """
    from robustcli.bench.autoattack import bench_autoattack
    from robustcli.bench.tables import speed_rows

    results = [
        bench_autoattack(subject, rounds, screen, is_compiled=is_compiled)
        for subject in subjects_of(checkpoints, norm, eps, examples, data, device)
    ]
    show(results, speed_rows(results), out)


@app.command()
def conformance(
    checkpoints: Checkpoints,
    examples: Annotated[int, typer.Option(min=1, help="The first so many test images.")] = 500,
    runs: Annotated[int, typer.Option(min=1, help="Of what draws noise, each with another seed.")] = 1,
    attacks: Annotated[
        str | None, typer.Option(help="Some of apgd-ce, apgd-t, fab-t, square; all if left out.")
    ] = None,
    precision: Annotated[str, typer.Option(help="Of the native search: fp32 or fast.")] = "fp32",
    eps: Eps = None,
    norm: NormOption = None,
    data: Images = None,
    device: Device = "auto",
    out: Out = None,
) -> None:
    """Equal verdicts: what the native engine of AutoAttack breaks beside what the package of its authors breaks.

    Every attack alone on all images that are right when clean, and all together.
    """
    from robustcli.bench.conformance import PARTS, bench_conformance
    from robustcli.bench.tables import conformance_rows, conformance_words

    if precision not in ("fp32", "fast"):
        raise RobustCliError(f"--precision: '{precision}' is not one of fp32, fast")
    named = [] if attacks is None else [part.strip() for part in attacks.split(",")]
    for part in named:
        if part not in PARTS:
            raise RobustCliError(f"--attacks: there is no '{part}'{suggest(part, PARTS)}")
    only = [part for part in PARTS if part in named]
    results = [
        bench_conformance(subject, "fast" if precision == "fast" else "fp32", runs, only)
        for subject in subjects_of(checkpoints, norm, eps, examples, data, device)
    ]
    show(results, conformance_rows(results), out)
    typer.echo(conformance_words(results))


@app.command()
def report(
    files: Annotated[list[Path], typer.Argument(help="Of one bench: what --out wrote.")],
    into: Annotated[
        Path | None, typer.Option(help="Replace a block of this file: <!-- speed -->, <!-- conformance -->, ...")
    ] = None,
) -> None:
    """Print stored results of one of these benches as a Markdown table, or put it into a file.

    The block is speed (of autoattack), conformance, "training speed", "evaluation speed", "data speed",
    "architecture speed" or scaling.
    """
    from robustcli.bench.tables import markdown_of
    from robustcli.reports.runs import replace_block
    from robustcli.store.files import read_json

    for path in files:
        if not path.is_file():
            raise RobustCliError(f"{path}: no such file")
    name, text = markdown_of({str(path): read_json(path) for path in files})
    if into is None:
        typer.echo(text, nl=False)
    else:
        replace_block(into, name, text)


def _trainable() -> Iterator[str]:
    """Defenses that are at home on any network without being told anything."""
    for name, member in catalog("defenses").items():
        if name not in PAIRED and all(value.default is not REQUIRED for value in member.parameters.values()):
            yield name


def _table(name: str, result: Mapping[str, Any], settings: Mapping[str, Any]) -> Table:
    from robustcli.bench.cost_tables import passes_words
    from robustcli.measuring.words import megabytes, ratio_words

    architecture = settings["architecture"]
    parts = [
        name if settings["weights"] == "none" else f"{name} with {settings['weights']}",
        architecture["name"] + (f" width {architecture['width']}" if "width" in architecture else ""),
        f"batch {settings['batch_size']}",
        settings["precision"],
        "channels_last" if settings["channels_last"] else "plain format",
        *(["compiled"] if settings["compile"] else []),
    ]
    table = Table(title=", ".join(parts), title_justify="left")
    table.add_column("")
    for column in ("passes", "images/s", "s per update", "peak MB", "over the limit", "our speed is", "so ours is"):
        table.add_column(column, justify="right")
    for row in result["rows"]:
        table.add_row(
            row["name"],
            passes_words(row["passes"]),
            f"{row['images_per_second']:.1f}",
            f"{row['seconds']['median']:.4f}",
            megabytes(row),
            ratio_words(row["over_limit"]),
            ratio_words(row["ratio"]),
            row["verdict"] or "",
        )
    return table


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
    from robustcli.measuring.machine import machine_words

    settings = results["settings"]
    seconds = "processor seconds" if settings["clock"] == "cpu" else "wall-clock seconds"
    return [
        f"{machine_words(results)}; {settings['rounds']} rounds in alternating order; {seconds}",
        "passes: forwards + backwards to the images alone + backwards to the weights, per image",
        "peak: of tensors at once, beyond what was held before the update",
        "its passes alone: the same network, precision, format and programs, with nothing around the passes: the limit",
        "torchattacks, set as ours: same precision and format, not compiled, in this process, which keeps freed memory",
        "torchattacks, fp32 in the plain format: the same there",
        "torchattacks, as it comes: fp32 in the plain format, in a process of its own, which keeps no freed memory",
        *(f"note: {note}" for note in results["notes"]),
    ]
