"""The commands of `robust bench` for single parts. torch is imported inside them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from robustcli.cli.bench_options import Checkpoints, Rounds, kept, show, subjects_of
from robustcli.cli.options import Device, Eps, Images, NormOption, Out

app = typer.Typer()


@app.command("eval")
def evaluation(
    checkpoints: Checkpoints,
    examples: Annotated[int, typer.Option(min=1, help="Use only the first N test images.")] = 200,
    rounds: Rounds = 5,
    eps: Eps = None,
    norm: NormOption = None,
    data: Images = None,
    device: Device = "auto",
    out: Out = None,
) -> None:
    """Benchmark PGD-20 with early exit against its bare passes, torchattacks and foolbox.

    Ratios are our speed as a multiple of the other's, taken round by round; a difference counts only if it exceeds the
    variation of our evaluation itself. Libraries that are not installed are left out.
    """
    from robustcli.bench.evaluate import bench_evaluation

    subjects = subjects_of(checkpoints, norm, eps, examples, data, device)
    results = kept((bench_evaluation(subject, rounds) for subject in subjects), out)
    show(results, notes=[note for result in results for note in result.notes])


@app.command()
def data(
    batch_size: Annotated[int, typer.Option(min=1, max=2048, help="Images per batch.")] = 128,
    rounds: Rounds = 5,
    device: Device = "auto",
    out: Out = None,
) -> None:
    """Benchmark the input pipeline against torchvision's: images in memory, and crops of large JPEG files.

    Images in memory are compared as a fraction of a PGD-10 update, decoding by images per second and processor.
    """
    from robustcli.bench.data import bench_data

    with _measuring("the input pipeline"):
        results = kept([bench_data(batch_size, rounds, device)], out)
    show(results)


@app.command()
def architectures(
    architecture: Annotated[
        list[str] | None,
        typer.Option(help="Architecture to measure; may be repeated. Default: all that have defaults."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per pass.")] = 4,
    rounds: Rounds = 3,
    device: Device = "auto",
    out: Out = None,
) -> None:
    """Benchmark architectures: time of a pass relative to its multiply-accumulates and to resnet18.

    Measures every family, then resnet18 with each alternative layer and inside cifs and multibn. Networks above 0.6 G
    multiply-accumulates are narrowed first. The output names networks that reach less than a third of resnet18's
    multiply-accumulates per second in every round.
    """
    from robustcli.bench.architectures import bench_architectures

    with _measuring("architectures"):
        results = kept([bench_architectures(tuple(architecture or ()), batch_size, rounds, device)], out)
    show(results)


@app.command()
def scaling(
    architecture: Annotated[str, typer.Option(help="Architecture that has a width.")] = "preact_resnet18",
    rounds: Rounds = 3,
    workers: Annotated[int, typer.Option(min=1, help="Largest number of processes.")] = 2,
    device: Device = "auto",
    out: Out = None,
) -> None:
    """Benchmark how the cost of an update grows with batch size, attack steps, width and processes."""
    from robustcli.bench.scaling import bench_scaling

    with _measuring("updates over batch, steps, width and processes"):
        results = kept([bench_scaling(architecture, rounds, workers, device)], out)
    show(results)


@contextmanager
def _measuring(what: str) -> Iterator[None]:
    from rich.console import Console

    with Console(stderr=True).status(f"measuring {what}"):
        yield
