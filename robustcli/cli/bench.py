"""The commands of `robust bench`. torch is imported inside them."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

import typer

from robustcli.cli import bench_parts, bench_speedrun
from robustcli.cli.bench_options import Checkpoints, Rounds, kept, show, subjects_of
from robustcli.cli.options import Device, Eps, Images, Json, NormOption, Out, console, print_json
from robustcli.errors import CheckFailedError, RobustCliError, suggest

app = typer.Typer(
    no_args_is_help=True,
    help="Benchmark training and attacks against their bare passes, which are the minimum, and other libraries.",
)
app.add_typer(bench_parts.app)
app.add_typer(bench_speedrun.app)


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
    precision: Annotated[Literal["fp32", "bf16"], typer.Option(help="Precision of the network's passes.")] = "fp32",
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

    from robustcli.bench.train import bench_train
    from robustcli.bench.variants import Request, trainable_defenses
    from robustcli.reports.benchmarks.training import describe_conditions, describe_passes, terminal_table

    names = defense or ["pgd_at"]
    request = Request(
        defenses=tuple(trainable_defenses() if "all" in names else dict.fromkeys(names)),
        architecture=architecture,
        rounds=rounds,
        precision=precision,
        channels_last="auto" if channels_last is None else channels_last,
        is_compiled=is_compiled,
        device=device,
    )
    widths: Sequence[int | None] = width or [None]
    requests = [
        replace(request, width=wide, batch_size=size, weights=perturbation)
        for wide, size, perturbation in product(widths, batch_size or [128], weights or ["none"])
    ]
    with Console(stderr=True).status(f"measuring {', '.join(request.defenses)} in {rounds} rounds"):
        measured = kept(map(bench_train, requests), out)
    if as_json:
        plain = [bench.to_json() for bench in measured]
        print_json(plain if len(plain) > 1 else plain[0])
        return
    screen = console()
    for bench in measured:
        for name, result in bench.defenses.items():
            screen.print(terminal_table(name, result, bench.settings))
            screen.print(describe_passes(result), highlight=False, markup=False)
    for line in describe_conditions(measured[-1]):
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

    subjects = subjects_of(checkpoints, norm, eps, examples, data, device)
    show(kept((bench_autoattack(subject, rounds, sample_first, is_compiled=is_compiled) for subject in subjects), out))


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
    precision: Annotated[Literal["fp32", "fast"], typer.Option(help="Precision of our search.")] = "fp32",
    is_quick: Annotated[
        bool,
        typer.Option("--quick", help="Compare the estimate of --attack quick with our AutoAttack on all images."),
    ] = False,
    eps: Eps = None,
    norm: NormOption = None,
    data: Images = None,
    device: Device = "auto",
    out: Out = None,
) -> None:
    """Compare which images our AutoAttack and the authors' package break.

    Each attack runs on all images that are classified correctly when clean; then all attacks run together.
    With --quick, compare the quick evaluation (estimate, interval, time) with our AutoAttack instead. AutoAttack runs
    once, and the quick evaluation with as many seeds as --runs.
    """
    from robustcli.bench.conformance import PARTS, bench_conformance
    from robustcli.bench.quick import autoattack_on_all, bench_quick

    subjects = subjects_of(checkpoints, norm, eps, examples, data, device)
    if is_quick:
        if attacks is not None or precision != "fp32":
            raise RobustCliError("--quick: found --attacks or --precision, which it does not take; remove them")
        show(kept((bench_quick(subject, autoattack_on_all(subject), runs) for subject in subjects), out))
        return
    named = [] if attacks is None else [part.strip() for part in attacks.split(",")]
    for part in named:
        if part not in PARTS:
            raise RobustCliError(f"--attacks: there is no '{part}'{suggest(part, PARTS)}")
    only = [part for part in PARTS if part in named]
    show(kept((bench_conformance(subject, precision, runs, only) for subject in subjects), out))


@app.command()
def report(
    files: Annotated[list[Path], typer.Argument(help="Files that --out of one benchmark wrote.")],
    into: Annotated[
        Path | None, typer.Option(help="Replace a block of this file: <!-- speed -->, <!-- conformance -->, ...")
    ] = None,
) -> None:
    """Print stored results of a benchmark as a Markdown table, or write it into a file.

    The block is speed (of autoattack), conformance, "quick evaluation", "training speed", "evaluation speed",
    "data speed", "architecture speed" or scaling.
    """
    from robustcli.bench.results.file import parse_benches
    from robustcli.reports.benchmarks.tables import markdown_of
    from robustcli.reports.blocks import replace_block
    from robustcli.store.files import read_json

    name, text = markdown_of({str(path): parse_benches(read_json(path), path) for path in files})
    if into is None:
        typer.echo(text, nl=False)
    else:
        replace_block(into, name, text)


@app.command("gpu")
def check_gpu(device: Device = "auto", out: Out = None) -> None:
    """Check a GPU in about ten minutes: tests, verdicts next to the authors' package, speed of updates and epochs.

    A step that fails is reported and the others continue; the exit code is then 1.
    """
    from robustcli.bench.gpu_check import Sizes
    from robustcli.bench.gpu_check import check_gpu as run
    from robustcli.cli.progress import Screen
    from robustcli.reports.benchmarks.tables import terminal
    from robustcli.store.files import write_json

    with Screen(is_quiet=True) as screen:
        found = run(device, Sizes(), screen, lambda name: typer.echo(f"running: {name}", err=True))
    if out is not None:
        write_json(out, found.to_json())
    rows = [{"step": step.step, "outcome": str(step), "seconds": f"{step.seconds:.1f}"} for step in found.steps]
    console().print(terminal(rows))
    typer.echo(found.describe())
    if found.failed:
        raise CheckFailedError(", ".join(found.failed))
