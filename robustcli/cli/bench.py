"""The commands of `robust bench`. torch is imported inside them."""

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustcli.cli import bench_parts as cost_commands
from robustcli.cli import bench_speedrun
from robustcli.cli.bench_options import Checkpoints, Rounds, show, subjects_of
from robustcli.cli.options import Device, Eps, Images, Json, NormOption, Out, console, print_json
from robustcli.errors import CheckFailedError, RobustCliError, suggest

if TYPE_CHECKING:
    from rich.table import Table

    from robustcli.bench.results import TrainingBench, TrainingDefense, TrainingSettings

app = typer.Typer(
    no_args_is_help=True,
    help="Benchmark training and attacks against their theoretical minimum and against other libraries.",
)
app.add_typer(cost_commands.app)
app.add_typer(bench_speedrun.app)


class Precision(StrEnum):
    """Precision of the network's passes."""

    fp32 = "fp32"
    bf16 = "bf16"


@app.command()
def train(
    architecture: Annotated[
        str, typer.Option(help="Architecture; see `robust list architectures`.")
    ] = "preact_resnet18",
    width: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Width of the architecture; default 16. May be repeated.", show_default=False),
    ] = None,
    batch_size: Annotated[
        list[int] | None, typer.Option(min=1, help="Images per update; default 128. May be repeated.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=3, help="Number of rounds; everything runs once in each.")] = 7,
    defense: Annotated[
        list[str] | None,
        typer.Option(help="Defense to measure; may be repeated. `all`: every defense that has defaults."),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(help="Weight perturbation; default none. See `robust list weights`. May be repeated."),
    ] = None,
    channels_last: Annotated[
        bool | None,
        typer.Option(
            "--channels-last/--plain-format",
            help="Memory format of images and weights. Default: as training chooses it.",
        ),
    ] = None,
    precision: Annotated[Precision, typer.Option(help="Precision of the network's passes.")] = Precision.fp32,
    is_compiled: Annotated[bool, typer.Option("--compile", help="Compile the network, as train.compile does.")] = False,
    device: Device = "auto",
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Benchmark training updates against their bare passes and against torchattacks' PGD.

    Uses random images of CIFAR-10's shape. Ratios are our speed as a multiple of the other's, taken round by round; a
    difference counts only if it exceeds the variation between two measurements of the same update. Every width is
    measured with every batch size and every weight perturbation.
    """
    from rich.console import Console

    from robustcli.bench.results import TrainingBench, typed
    from robustcli.bench.train import bench_train
    from robustcli.bench.variants import Request
    from robustcli.measuring.machine import format_machine
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
            if out is not None:  # Keeps the finished measurements if the rest is interrupted.
                write_json(out, measured)
    if as_json:
        print_json(measured if len(measured) > 1 else measured[0])
        return
    screen = console()
    benches = typed(TrainingBench, measured)
    for bench in benches:
        for name, result in bench.defenses.items():
            screen.print(_table(name, result, bench.settings))
            screen.print(_passes(result), highlight=False, markup=False)
    for line in _conditions(benches[-1], format_machine(measured[-1])):
        screen.print(line, highlight=False, markup=False, soft_wrap=True)


@app.command()
def autoattack(
    checkpoints: Checkpoints,
    examples: Annotated[int, typer.Option(min=1, help="Use only the first N test images.")] = 200,
    rounds: Rounds = 3,
    sample_first: Annotated[
        int | None,
        typer.Option(
            "--sample-first", "--screen", min=1, help="Also measure with this many surviving images tried first."
        ),
    ] = None,
    is_compiled: Annotated[bool, typer.Option("--compile", help="Also measure a compiled search.")] = False,
    eps: Eps = None,
    norm: NormOption = None,
    data: Images = None,
    device: Device = "auto",
    out: Out = None,
) -> None:
    """Benchmark AutoAttack: our engine against the authors' package.

    The package runs as its users call it. Speeds are multiples of the package's, taken round by round; on a CPU they
    are measured in processor time. Compilation time is not counted. The limit is the bare passes that surviving and
    broken images need in fp32. A difference counts only if it exceeds the variation of our engine itself.
    """
    from robustcli.bench.autoattack import bench_autoattack
    from robustcli.bench.tables import speed_rows

    results = [
        bench_autoattack(subject, rounds, sample_first, is_compiled=is_compiled)
        for subject in subjects_of(checkpoints, norm, eps, examples, data, device)
    ]
    show(results, speed_rows(results), out)


@app.command()
def conformance(
    checkpoints: Checkpoints,
    examples: Annotated[int, typer.Option(min=1, help="Use only the first N test images.")] = 500,
    runs: Annotated[
        int, typer.Option(min=1, help="Repetitions of the attacks that draw noise, each with another seed.")
    ] = 1,
    attacks: Annotated[
        str | None, typer.Option(help="Attacks to run, among apgd-ce, apgd-t, fab-t, square. Default: all.")
    ] = None,
    precision: Annotated[str, typer.Option(help="Precision of our search: fp32 or fast.")] = "fp32",
    eps: Eps = None,
    norm: NormOption = None,
    data: Images = None,
    device: Device = "auto",
    out: Out = None,
) -> None:
    """Compare which images our AutoAttack and the authors' package break.

    Each attack runs on all images that are classified correctly when clean; then all attacks run together.
    """
    from robustcli.bench.conformance import PARTS, bench_conformance
    from robustcli.bench.tables import conformance_rows, describe_conformance

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
    typer.echo(describe_conformance(results))


@app.command()
def report(
    files: Annotated[list[Path], typer.Argument(help="Files that --out of one benchmark wrote.")],
    into: Annotated[
        Path | None, typer.Option(help="Replace a block of this file: <!-- speed -->, <!-- conformance -->, ...")
    ] = None,
) -> None:
    """Print stored results of a benchmark as a Markdown table, or write it into a file.

    The block is speed (of autoattack), conformance, "training speed", "evaluation speed", "data speed",
    "architecture speed" or scaling.
    """
    from robustcli.bench.tables import markdown_of
    from robustcli.reports.blocks import replace_block
    from robustcli.store.files import read_json

    for path in files:
        if not path.is_file():
            raise RobustCliError(f"{path}: no such file")
    name, text = markdown_of({str(path): read_json(path) for path in files})
    if into is None:
        typer.echo(text, nl=False)
    else:
        replace_block(into, name, text)


@app.command("gpu")
def check_gpu(device: Device = "auto", out: Out = None) -> None:
    """Check a GPU in about ten minutes: tests, verdicts next to the authors' package, speed of updates and epochs.

    A step that fails is reported and the others continue; the exit code is then 1.
    """
    from rich.table import Table

    from robustcli.bench.gpu_check import Sizes
    from robustcli.bench.gpu_check import check_gpu as run
    from robustcli.cli.progress import Screen
    from robustcli.measuring.machine import format_machine
    from robustcli.store.files import write_json

    with Screen(is_quiet=True) as screen:
        found = run(device, Sizes(), screen, lambda name: typer.echo(f"running: {name}", err=True))
    if out is not None:
        write_json(out, found)
    table = Table("step", "outcome", "seconds")
    for step in found["steps"]:
        table.add_row(step["step"], _outcome(step), f"{step['seconds']:.1f}")
    console().print(table)
    typer.echo(format_machine(found))
    if failed := [step["step"] for step in found["steps"] if step["status"] == "failed"]:
        raise CheckFailedError(", ".join(failed))


def _outcome(step: Mapping[str, Any]) -> str:
    """Outcome of one step of the check, with its most important number."""
    if step["status"] != "ok":
        return f"{step['status']}: {step['reason']}"
    shown = {
        "images_per_second": "{} images/s",
        "differing": "{} verdicts differ",
        "robust": "robust accuracy {:.2f}",
        "reason": "{}",
    }
    return next((text.format(step[key]) for key, text in shown.items() if step.get(key) is not None), "ok")


def _trainable() -> Iterator[str]:
    """Yield the defenses that train any architecture with their defaults."""
    from robustcli.registry.catalog import catalog
    from robustcli.registry.signatures import REQUIRED

    for name, member in catalog("defenses").items():
        if not member.trains and all(value.default is not REQUIRED for value in member.parameters.values()):
            yield name


def _table(name: str, result: "TrainingDefense", settings: "TrainingSettings") -> "Table":
    from rich.table import Table

    from robustcli.bench.cost_tables import format_passes, shown

    parts = [
        settings.method(name),
        settings.network,
        f"batch {settings.batch_size}",
        settings.precision,
        "channels_last" if settings.channels_last else "plain format",
        *(["compiled"] if settings.compile else []),
    ]
    table = Table(title=", ".join(parts), title_justify="left")
    table.add_column("")
    for column in ("passes", "images/s", "s per update", "peak MB", "over the limit", "our speed is", "ours is"):
        table.add_column(column, justify="right")
    for row in result.rows:
        table.add_row(
            row.name,
            format_passes(row.passes or {}),
            f"{row.images_per_second:.1f}",
            f"{row.seconds.median:.4f}",
            row.peak,
            shown(row.over_limit),
            shown(row.ratio),
            row.verdict or "",
        )
    return table


def _passes(result: "TrainingDefense") -> str:
    """Format counted and minimal passes in one line."""
    words = " ".join(f"{count:g} {kind.replace('_', ' ')}," for kind, count in result.passes.items()).rstrip(",")
    least = result.least_passes
    if least is None:
        return f"passes per image: {words} (the minimum is not known; the passes made are timed)"
    return f"passes per image: {words} ({'the minimum' if least == result.passes else f'minimum: {least}'})"


def _conditions(bench: "TrainingBench", machine: str) -> list[str]:
    seconds = "processor seconds" if bench.settings.clock == "cpu" else "wall-clock seconds"
    return [
        f"{machine}; {bench.settings.rounds} rounds in alternating order; {seconds}",
        "passes: forwards + backwards to the images + backwards to the weights, per image",
        "peak: memory of tensors at once, in addition to what was held before the update",
        "its passes alone: the same network, precision, format and programs, with nothing around the passes: the limit",
        "torchattacks, set as ours: same precision and format, not compiled, in this process, which keeps freed memory",
        "torchattacks, fp32 in the plain format: the same there",
        "torchattacks, as it comes: fp32 in the plain format, in a separate process, which keeps no freed memory",
        *(f"note: {note}" for note in bench.notes),
    ]
